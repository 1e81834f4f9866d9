"""Recall of every system by the same read-outs, so that none is judged by a better one than another."""

from __future__ import annotations

from collections.abc import Sequence

from camae.reporting.run_folder import Score
from camae.reproduction.paper.evaluate_system import Outcome
from camae.reproduction.paper.paper_tables import PaperTable

_OWN = {"mean": "mean", "cls": "class token"}


def read_out_table(outcomes: Sequence[Outcome], sources: Sequence[str]) -> PaperTable:
    """Recall with the paper's read-out and with moments, mean and standard deviation over places, of every system.

    Places are patch tokens, or positions of a convolutional feature map. A CA-MAE's are read out by channel where
    all sites have the same.
    """
    columns = [(source, kind) for source in sources for kind in ("the paper's read-out", "moments")]
    table = PaperTable(
        "read_outs",
        "Recall by read-out (read-outs)",
        ["Model backbone", "the paper's read-out is the", *(f"{s}, {kind}" for s, kind in columns)],
        [],
        [],
        [],
    )
    for o in outcomes:
        if o.step is None and o.moments:
            cells = [_cell(scores, source) for source in sources for scores in (o.recall, o.moments)]
            table.rows.append([o.label, _OWN[o.system.pool], *cells])
    table.notes = [
        "Moments: the mean and the standard deviation over patch tokens or over the places of a feature map, the same "
        "read-out for every system; the paper has no such table. Systems without an encoder have none."
    ]
    return table


def _cell(scores: dict[str, Score], source: str) -> str:
    score = scores.get(source)
    return "" if score is None else f"{score['value']:.3f} ± {score['se']:.3f}"
