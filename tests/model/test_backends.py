"""Back-ends of a model: one frozen object, known to every module that runs an op."""

import dataclasses

import pytest

from camae.model import Backends
from camae.model.backends import BackendModule
from camae.model.interface import Reconstructs, TokenModel


def held(model):
    return [module.backends for module in model.modules() if isinstance(module, BackendModule)]


def test_backends_reach_every_block(tiny):
    model = tiny(decoder={"depth": 1})
    assert len(held(model)) > 5
    assert set(held(model)) == {Backends()}
    changed = Backends(attention="reference", elementwise="reference")
    assert model.use_backends(changed) is model
    assert set(held(model)) == {changed}


def test_backends_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Backends().attention = "reference"


def test_what_a_ca_mae_can_do(tiny):
    model = tiny()
    assert isinstance(model, TokenModel)
    assert isinstance(model, Reconstructs)
