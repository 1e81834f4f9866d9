"""Figures and the one-file HTML report of a run. Draws from files and plain arrays; computes no result itself.

Named `reporting` so that `camae.report` is the function. Imports neither models nor torch.
"""

from camae.reporting.page import report

__all__ = ["report"]
