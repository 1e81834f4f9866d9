"""What happened to a run besides its steps: one sentence each, said at once and kept in `events.jsonl`."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path


def note(out: Path, sentence: str, step: int) -> None:
    """Warn, and append {"time", "step", "event"} to the run's `events.jsonl` (not on a disk that refuses)."""
    warnings.warn(sentence, stacklevel=2)
    row = {"time": round(time.time(), 3), "step": step, "event": sentence}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / "events.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        warnings.warn(f"{out / 'events.jsonl'} could not be written ({error})", stacklevel=2)
