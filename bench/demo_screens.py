"""Row and figure of `camae demo --screens 5`: the trained encoder less the best baseline, pooled over the screens.

`camae demo --screens 5 --out runs/demo-screens && python bench/demo_screens.py runs/demo-screens` appends to
`results/<device>/demo.jsonl` and draws `demo_screens.png` beside it. `--scratch`: under runs/bench instead.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rows import RESULTS, SCRATCH, append_row, device_name

from camae.errors import CamaeError
from camae.files import write_atomic
from camae.reporting.figures import recall_bars
from camae.reporting.style import png
from camae.reporting.verdict import verdict

POOLED = ("recall", "trained_minus", "best_baseline", "trained_minus_best", "seconds", "training_crops")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--scratch", action="store_true")
    options = parser.parse_args()
    row = row_of(options.run)
    append_row("demo.jsonl", row, full=not options.scratch)
    place = (SCRATCH if options.scratch else RESULTS) / device_name("cpu") / "demo_screens.png"
    write_atomic(place, lambda path: path.write_bytes(png(recall_bars(row["recall"]), dpi=150)))
    print(row["verdict"])


def row_of(run: Path) -> dict[str, Any]:
    """Pooled recall and differences, and those of every screen. Raises CamaeError for a run of one screen."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    if "screens" not in summary:
        raise CamaeError(f"{run} is a run of one screen; make one with camae demo --screens 5")
    row: dict[str, Any] = {"op": "demo", "verdict": verdict(summary)} | {k: summary[k] for k in POOLED}
    row["screens"] = {}
    for screen in summary["screens"]:
        single = json.loads(
            (run / "screens" / str(screen["seed"]) / "summary.json").read_text(encoding="utf-8")
        )
        row["screens"][screen["seed"]] = {
            "recall": {system: score["value"] for system, score in single["recall"].items()},
            "trained_minus_best": screen["difference"],
            "read_out": single["read_out"],
            "alignment": single["alignment"],
            "seconds": single["seconds"],
        }
    return row


if __name__ == "__main__":
    main()
