"""Processes whose training steps leave time for signals and for other processes."""


def slowly(seconds: str) -> str:
    """Code to run before a training: every step first sleeps, as long as this expression says."""
    return f"""
import time
import warnings
from camae.training import trainer as loop
step = loop.Trainer._step
def slow_step(*arguments):
    time.sleep({seconds})
    return step(*arguments)
loop.Trainer._step = slow_step
"""


def losses(run):
    return [row["loss"] for row in run.history]
