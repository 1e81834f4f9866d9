"""Balanced sampling over plates, ghost batches, and what adaptive batch norm is for."""

import importlib.util

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from torch import nn

import camae
from camae.dataloader.manifest import Manifest
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.reproduction.systems.adabn import GhostBatchNorm, adapted, use_ghost_batches
from camae.reproduction.systems.weakly_supervised import PlateCropLoader

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm or torchvision is absent",
)
DENSE = {"crop": 32, "growth": 6, "blocks": [1, 1, 1, 1], "hidden": 32, "embedding": 16}


@pytest.fixture
def uneven(tmp_path):
    """A manifest of 3 + 9 sites on two plates, tiny images."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        tifffile.imwrite(tmp_path / f"{i}.tif", rng.integers(0, 999, (40, 40)).astype(np.uint16))
        rows.append(
            {"Metadata_Plate": "P1" if i < 3 else "P2", "Metadata_Well": f"A{i:02d}", "DNA": f"{i}.tif"}
        )
    return Manifest(pd.DataFrame(rows), tmp_path)


def test_plates_take_turns_in_whole_groups(uneven):
    class Groups(PlateCropLoader):
        group = 4

    loader = Groups(uneven, crop=16, batch_size=8, seed=3)
    rows = np.concatenate([loader.batch_at(step).rows_B for step in range(9)])
    plate = uneven.plates()[rows].reshape(-1, 4)
    assert (plate == plate[:, :1]).all()  # a ghost batch is of one plate
    assert (np.unique(plate[:, 0], return_counts=True)[1] == 9).all()  # plates are equally frequent
    small = rows[np.isin(rows, [0, 1, 2])]
    assert np.ptp(np.bincount(small)) <= 1  # and so are the sites of a plate
    again = Groups(uneven, crop=16, batch_size=8, seed=3).batch_at(5)
    assert torch.equal(again.planes_KHW.int(), loader.batch_at(5).planes_KHW.int())
    ranks = [Groups(uneven, crop=16, batch_size=4, seed=3, rank=r, world_size=2) for r in (0, 1)]
    assert (
        np.concatenate([r.batch_at(2).rows_B for r in ranks]).tolist() == loader.batch_at(2).rows_B.tolist()
    )


def test_groups_must_fit_the_batch(uneven):
    class Groups(PlateCropLoader):
        group = 3

    with pytest.raises(CamaeError, match="ghost batches of 3"):
        Groups(uneven, crop=16, batch_size=8)


def test_ghost_batches_are_normalized_by_themselves():
    """Against the definition in fp64; running statistics move by momentum once per ghost batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.1))
    use_ghost_batches(net, 4)
    x = torch.randn(9, 3, 5, 5) * 2 + 1
    out = net(x).detach().double()
    mean = torch.zeros(3, dtype=torch.float64)
    for part, got in ((x[:4], out[:4]), (x[4:], out[4:])):  # the ninth joins the second run
        p = part.double()
        m, v = p.mean((0, 2, 3)), p.var((0, 2, 3), unbiased=False)
        want = (p - m[:, None, None]) / (v[:, None, None] + 1e-5).sqrt()
        # fp32 of values up to about 10: absolute rounding 10 * 2**-23, a few operations
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        mean = 0.9 * mean + 0.1 * m
    torch.testing.assert_close(net[0].norm.running_mean.double(), mean, atol=1e-6, rtol=0)


@needs_timm
def test_adabn_brings_matched_wells_of_shifted_plates_together(tmp_path):
    """Two plates hold the same wells, the second with a gamma and a haze: plain batch norm sees two plates."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64]
    rows = []
    for w in range(12):
        centers, width = rng.uniform(8, 56, (6, 2)), rng.uniform(3, 8)
        cells = sum(np.exp(-((y - a) ** 2 + (x - b) ** 2) / (2 * width**2)) for a, b in centers)
        for plate in ("P1", "P2"):
            row = {
                "Metadata_Plate": plate,
                "Metadata_Well": f"A{w:02d}",
                "Metadata_Perturbation": f"g{w % 4}",
            }
            for c, channel in enumerate(("DNA", "ER")):
                # Self-standardization removes gain and offset; a gamma and uneven light it cannot.
                plane = np.clip(cells, 0, 1.5) ** (1 + 0.3 * c)
                if plate == "P2":
                    plane = plane**0.4 + 0.8 * (x / 64)
                plane = 500 + 3000 * plane + rng.normal(0, 20, plane.shape)
                row[channel] = f"{plate}_{w}_{channel}.tif"
                tifffile.imwrite(tmp_path / row[channel], plane.clip(0).astype(np.uint16))
            rows.append(row)
    manifest = Manifest(pd.DataFrame(rows), tmp_path)
    settings = {"batch_size": 8, "optimizer": "adamw", "lr": 3e-3, "quiet": True}
    distance = {}
    for name, ghost in (("wsl_densenet_ti", 0), ("wsl_densenet_ti_adabn", 4)):
        run = camae.train(
            manifest, name, tmp_path / name, 30, model_options=DENSE | {"ghost": ghost}, **settings
        )
        table = camae.embed_screen(manifest, run.model, tmp_path / f"emb_{name}", quiet=True)
        features = features_of(table).astype(float)
        plate, well = table["Metadata_Plate"].to_numpy(str), table["Metadata_Well"].to_numpy(str)
        one = features[plate == "P1"][np.argsort(well[plate == "P1"])]
        two = features[plate == "P2"][np.argsort(well[plate == "P2"])]
        scale = np.sqrt(((features - features.mean(0)) ** 2).sum(1).mean())
        distance[name] = np.linalg.norm(one - two, axis=1).mean() / scale
    assert distance["wsl_densenet_ti_adabn"] < 0.8 * distance["wsl_densenet_ti"], distance


@needs_timm
def test_adapted_statistics_are_those_of_the_plate(uneven):
    from camae.model import registry as families

    torch.manual_seed(0)
    model = families.build(
        "wsl_densenet_ti_adabn", channels=("DNA",), classes=("a", "b"), **(DENSE | {"ghost": 2})
    ).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    copy = adapted(model, uneven)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # the model given stays as it was
    moved = [n for n, t in copy.state_dict().items() if "running" in n and not torch.equal(t, before[n])]
    ghosts = [m for m in copy.modules() if isinstance(m, GhostBatchNorm)]
    assert len(moved) == 2 * len(ghosts)
