"""The smallest model that has every part, and a way to train it."""

from contextlib import contextmanager

import pytest

import camae

_DECODER = {"width": 32, "depth": 1, "heads": 4, "cross_heads": 4}
_MODEL = {"crop": 32, "patch": 8, "width": 32, "heads": 2, "depth": 2, "drop_path": 0.0, "decoder": _DECODER}


@pytest.fixture
def tiny():
    """Settings of a run of about 10 ms a step; no stochastic depth, so that passes and ranks change nothing."""
    return {"model": "ca_mae_vit_ti16", "model_options": dict(_MODEL), "batch_size": 4, "quiet": True}


@pytest.fixture
def train(tiny):
    """train(data, out, steps=6, **settings) -> Run."""
    return lambda data, out, steps=6, **settings: camae.train(data, out=out, steps=steps, **(tiny | settings))


@pytest.fixture
def interrupt():
    """interrupt(step): a context in which training is stopped inside that step, as a Ctrl-C would."""
    from camae.training.trainer import Trainer

    original = Trainer._step

    @contextmanager
    def interrupted(at):
        def stop(self, step, batches):
            if step == at:
                raise KeyboardInterrupt
            return original(self, step, batches)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "_step", stop)
            with pytest.raises(KeyboardInterrupt):
                yield

    return interrupted
