"""Model files: saved and loaded without a copy, converted, and used to start a training."""

import json

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

import camae
from camae.errors import CamaeError, MissingBackendError
from camae.model import CAMAE, load, preset, save
from camae.model.weights import convert
from camae.training.distributed import World
from camae.training.warm_start import initialize


def same(a, b):
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("block", ["parallel", "sequential"])
def test_what_is_saved_is_loaded(tiny, image, tmp_path, block):
    model = tiny(block=block)
    found = load(save(model, tmp_path / "model.safetensors"))
    assert same(model, found)
    assert found.config == model.config
    assert torch.equal(camae.embed(image(3), list("abc"), model), camae.embed(image(3), list("abc"), found))


def test_a_loaded_model_trains_and_leaves_its_file_alone(tiny, image, tmp_path):
    path = save(tiny(), tmp_path / "model.safetensors")
    before = path.read_bytes()
    model = load(path).train()
    model.loss(image(3), list(tiny().channels[:3]))["total"].backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad if parameter.grad is not None else 0, alpha=0.1)
    assert path.read_bytes() == before
    assert not same(model, load(path))


def test_loading_leaves_random_numbers_alone(tiny, tmp_path):
    path = save(tiny(), tmp_path / "model.safetensors")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load(path)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("device", ["gpu", "meta", ""])
def test_fault_24_a_name_of_no_device_is_refused_before_the_file_is_read(tmp_path, device):
    with pytest.raises(CamaeError, match="device"):
        load(tmp_path / "absent", device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fault_24_a_gpu_that_is_not_here_is_one_sentence(tmp_path):
    with pytest.raises(MissingBackendError, match=r"device 'cuda:1'.*finds no GPU here; take 'cpu'"):
        load(tmp_path / "absent", device="cuda:1")
    with pytest.raises(MissingBackendError, match=r"device 'cuda'.*finds no GPU here; take 'cpu'"):
        World.join("cuda")


def test_convert_keeps_everything(tiny, tmp_path):
    source = save(tiny(bias_layout="timm<=1.0.24"), tmp_path / "run" / "model.safetensors")
    target = convert(tmp_path / "run", tmp_path / "copy")
    assert target == tmp_path / "copy" / "model.safetensors"
    assert same(load(source), load(target))
    assert load(source).config == load(target).config
    with safe_open(target, "pt") as f:
        assert json.loads(f.metadata()["about"]) == {"converted_from": "run"}
    with pytest.raises(CamaeError, match="exists; name another file"):
        convert(source, target)


def test_convert_at_the_shell(tiny, tmp_path):
    from camae.cli import app

    source = save(tiny(), tmp_path / "model.safetensors")
    result = CliRunner().invoke(app, ["convert", str(source), str(tmp_path / "to.safetensors")])
    assert result.exit_code == 0, result.output
    assert same(load(source), load(tmp_path / "to.safetensors"))


def test_training_starts_from_weights_only_with_their_maths(tiny, tmp_path):
    path = str(save(tiny(bias_layout="timm<=1.0.24"), tmp_path / "model.safetensors"))
    with pytest.raises(CamaeError, match=r'model_options.bias_layout = "timm<=1.0.24"'):
        initialize(tiny(), path)
    model = tiny(bias_layout="timm<=1.0.24", channels=("DNA", "Lipid"))
    assert initialize(model, path) == ["Lipid"]
    assert same(model.encoder, load(path).encoder)


def test_presets_are_made_on_the_meta_device_without_numbers():
    """The tables of positions are real all the same: they are not in the file."""
    with torch.device("meta"):
        model = CAMAE(preset("ca_mae_vit_ti16", channels=("DNA",), depth=1))
    assert not model.encoder.positions_ND.is_meta
    assert model.encoder.cls_D.is_meta
