"""ImageNet models from local files, timm beside a CPU torch, random vectors."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import camae
from camae.embedding_table import features_of
from camae.errors import CamaeError, MissingFileError
from camae.reproduction.systems.imagenet import load_imagenet
from camae.reproduction.systems.random import random_table

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm or torchvision is absent",
)


def test_missing_weights_are_named():
    with pytest.raises(MissingFileError, match="vit_small_patch16_224; nothing is downloaded"):
        load_imagenet("imagenet_vit_s16", None, ("DNA",))
    with pytest.raises(MissingFileError, match=r"nowhere.safetensors: no such file"):
        load_imagenet("imagenet_vit_s16", "nowhere.safetensors", ("DNA",))


@needs_timm
def test_gray_images_of_six_channels_equal_rgb(tmp_path):
    """timm's own model on (x, x, x) against ours on six equal channels: the projections' sums agree."""
    from camae.reproduction.systems._torchvision import import_timm

    torch.manual_seed(0)
    theirs = import_timm().create_model("vit_tiny_patch16_224", num_classes=10).eval()
    save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    names = tuple("ABCDEF")
    ours = load_imagenet("imagenet_vit_ti16", tmp_path / "w.safetensors", names, crop=224)
    image = np.random.default_rng(0).integers(0, 4000, (224, 224)).astype(np.uint16)
    x = torch.from_numpy(image.astype(np.float64))
    x = ((x - x.mean()) / (x.var(correction=0) + 1e-6).sqrt()).float().expand(1, 3, -1, -1)
    with torch.no_grad():
        want = theirs.forward_features(x)[0, 0]
    found = camae.embed(np.stack([image] * 6), names, ours, "cls")
    # Tokens after a layer norm are of order 1; the sum over 6 x 256 pixels is ordered differently: 1e-4.
    np.testing.assert_allclose(found, want.numpy(), atol=1e-4)
    with pytest.raises(CamaeError, match="does not hold ImageNet-21k weights"):
        load_imagenet("imagenet_vit_s16", tmp_path / "w.safetensors", names)


@needs_timm
def test_timm_imports_in_a_fresh_process_and_doctor_says_how():
    code = (
        "from camae.reproduction.systems._torchvision import describe, import_timm; import_timm(); "
        "from camae.cli.doctor import examine; print(examine()['libraries']['timm']); assert examine(); "
        "assert 'torchvision' in describe()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "timm" in done.stdout


def test_nothing_else_imports_timm():
    root = Path(camae.__file__).parent
    pattern = re.compile(r"^\s*(import|from) (timm|torchvision)\b|import_module\(.(timm|torchvision)", re.M)
    assert {p.name for p in root.rglob("*.py") if pattern.search(p.read_text())} == {"_torchvision.py"}


def test_random_vectors_are_as_wide_as_asked():
    table = random_table(pd.DataFrame({"Metadata_Well": ["A01", "A02"], "x": [1, 2]}), width=1024)
    assert features_of(table).shape == (2, 1024)
    assert abs(features_of(table).std() - 1) < 0.1  # 2,048 standard normals: standard error 0.016
