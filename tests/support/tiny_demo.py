"""The demo with settings of seconds: a small screen, two training steps, few resamples."""

from __future__ import annotations

from camae.reproduction.demo import evaluate as evaluation
from camae.reproduction.demo import run_demo as demo
from camae.reproduction.demo.generate_screen import generate

SCREEN = {"plates": 2, "sites": 1, "size": 64, "workers": 1}


def make_tiny() -> None:
    """From now on `camae demo` in this process is tiny."""
    small = {"crop": 32, "patch": 16, "width": 32, "heads": 2, "depth": 1}
    decoder = {"width": 32, "heads": 4, "cross_heads": 4}
    demo.MODEL_OPTIONS = {
        **demo.MODEL_OPTIONS,
        **small,
        "decoder": {**demo.MODEL_OPTIONS["decoder"], **decoder},
    }
    demo.RECIPE = {**demo.RECIPE, "steps": 2, "batch_size": 4, "checkpoint_every": 1}
    evaluation.BOOTSTRAP = 20
    demo.generate = lambda out, seed, progress: generate(out, seed=seed, progress=progress, **SCREEN)
