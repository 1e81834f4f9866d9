"""Figures and the one-file HTML report of a run, drawn from files and plain arrays.

No result is computed here. Named `reporting` so that `camae.report` is the function. Imports neither models nor torch.
"""

from camae.reporting.page import report

__all__ = ["report"]
