"""Figures, the one-file HTML report of a run, and the explorer of a map, from files and plain arrays.

Apart from the maps that the explorer shows, no result is computed here. Named `reporting` so that `camae.report` is the
function. Imports neither models nor torch.
"""

from camae.reporting.explorer import explore
from camae.reporting.page import report

__all__ = ["explore", "report"]
