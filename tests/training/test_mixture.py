"""Several data sets with different channel sets in one run: shares, order, gradients, log, resume."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch

import camae
from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import PERIOD, MixedLoader, Source, assign, quotas
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.model import registry as families
from camae.training.data import micro_batches, open_data
from camae.training.randomness import mask_noise

SIX = ("DNA", "ER", "RNA", "AGP", "Mito", "Actin")


@pytest.fixture
def screens(make_screen):
    """Screens of six, five and three channels."""
    return [
        make_screen(f"c{n}", channels=SIX[:n], wells=wells, seed=n) for n, wells in ((6, 2), (5, 3), (3, 4))
    ]


def test_every_period_has_the_exact_shares_and_numbers_each_set_without_gaps():
    quota = tuple(quotas([3, 2, 1]))
    assert sum(quota) == PERIOD
    assert abs(quota[0] - PERIOD / 2) < 1
    source_B, own_B = assign(np.arange(3 * PERIOD), quota, seed=5)
    for s, count in enumerate(quota):
        assert np.bincount(np.arange(3 * PERIOD)[source_B == s] // PERIOD).tolist() == [count] * 3
        assert np.array_equal(np.sort(own_B[source_B == s]), np.arange(3 * count))
    later = np.arange(PERIOD + 17, PERIOD + 40)
    assert np.array_equal(assign(later, quota, seed=5)[0], source_B[later])
    assert not np.array_equal(assign(later, quota, seed=6)[0], source_B[later])


@pytest.mark.parametrize("weights", [[1, 0], [1, -1], [1, float("nan")], [1e9, 1]])
def test_impossible_weights(weights):
    with pytest.raises(CamaeError, match="weight"):
        quotas(weights)


def test_ranks_share_the_global_batch_whatever_their_number(screens):
    sources = open_data([(s, w) for s, w in zip(screens, (1, 2, 1), strict=True)])

    def crops(world_size, step):
        """slot -> (source, row, planes) of all ranks."""
        found = {}
        for rank in range(world_size):
            loader = MixedLoader(sources, crop=32, batch_size=7, rank=rank, world_size=world_size)
            batch = loader.batch_at(step)
            planes = batch.planes_KHW.split(batch.planes_per_sample)
            for slot, s, row, p in zip(batch.slots_B, batch.source_B, batch.rows_B, planes, strict=True):
                found[int(slot)] = (int(s), int(row), p.numpy().tobytes())
        return found

    one = crops(1, 3)
    assert sorted(one) == list(range(21, 28))
    assert crops(2, 3) == crops(4, 3) == crops(7, 3) == one
    with pytest.raises(CamaeError, match="cannot be shared by 8 ranks"):
        MixedLoader(sources, crop=32, batch_size=7, rank=0, world_size=8)


def test_masks_depend_on_the_crop_alone():
    slots, counts = torch.tensor([5, 9, 2**40]), (64, 32, 96)
    whole = mask_noise(3, slots, counts, torch.device("cpu"))
    parts = [mask_noise(3, slots[i : i + 1], counts[i : i + 1], torch.device("cpu")) for i in range(3)]
    assert torch.equal(torch.cat(parts), whole)
    noise = mask_noise(0, torch.arange(1000), (64,) * 1000, torch.device("cpu"))
    # 64,000 uniforms: standard error of the mean 0.00114, of a tenth's count 75.9; bounds are 5 of each.
    assert abs(noise.mean() - 0.5) < 0.0057
    assert noise.min() >= 0
    assert noise.max() < 1
    assert (torch.histc(noise, 10, 0, 1) - 6400).abs().max() < 380
    table = noise.view(1000, 64)
    # Neighboring crops and neighboring patches: correlation of 64,000 pairs has standard error 0.004.
    for a, b in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.02


def _gradients(model, batches, n_samples):
    model.zero_grad()
    for batch, noise in batches:
        model(batch, noise, mask_ratio=0.75, alpha=0.01, n_samples=n_samples)["total"].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cross_attention", ["shared", "per_channel", "none"])
def test_gradient_of_a_mixed_batch_is_that_of_uniform_ones(tiny, cross_attention):
    """In fp64: one batch of 6-, 5- and 3-channel samples against three uniform batches added up.

    The same terms in another order: 1e4 additions of fp64 rounding 1.1e-16 stay below 1e-11 of the largest.
    """
    options = tiny["model_options"] | {"channels": SIX}
    options["decoder"] = options["decoder"] | {"cross_attention": cross_attention}
    torch.manual_seed(0)
    model = families.build("ca_mae_vit_ti16", **options).double().train()
    rng = np.random.default_rng(0)
    names = [SIX[:6], SIX[:3], SIX[1:6], SIX[:3], SIX[:6], SIX[1:6]]
    images = [rng.integers(100, 4000, (len(n), 32, 32)).astype(np.uint16) for n in names]
    noises = [torch.rand(len(n) * 16, dtype=torch.float64) for n in names]

    def batch(chosen):
        picked = PlaneBatch.from_images([images[i] for i in chosen], [names[i] for i in chosen])
        return picked, torch.cat([noises[i] for i in chosen])

    mixed = _gradients(model, [batch(range(6))], 6)
    uniform = _gradients(model, [batch([0, 4]), batch([2, 5]), batch([1, 3])], 6)
    assert mixed.keys() == uniform.keys()
    for name, gradient in mixed.items():
        scale = max(gradient.abs().max().item(), 1e-12)
        torch.testing.assert_close(uniform[name], gradient, atol=1e-11 * scale, rtol=0, msg=name)


def test_passes_are_cut_to_a_budget():
    tokens = (96, 96, 48, 48, 80, 16)
    for budget in (96, 100, 192, 400):
        pieces = micro_batches(tokens, budget)
        assert [i for a, b in pieces for i in range(a, b)] == list(range(6))
        assert max(sum(tokens[a:b]) for a, b in pieces) <= budget
    assert len(micro_batches(tokens, 400)) == 1
    assert len(micro_batches(tokens, 192)) == 2
    assert micro_batches(tokens, None) == [(0, 6)]
    assert len(micro_batches(tokens, None, at_least=4)) == 4
    with pytest.raises(CamaeError, match=r"token_budget 90 is less than the 96 tokens"):
        micro_batches(tokens, 90)


def test_one_run_on_six_five_and_three_channels(screens, train, tmp_path):
    mixture = {"six": (screens[0], 1), "five": (screens[1], 2), "three": (screens[2], 1)}
    run = train(mixture, tmp_path / "run", 4, batch_size=8, detail_every=1, val="plate")
    assert run.model.channels == list(SIX)
    record = json.loads((run.path / "run.json").read_text())
    assert [d["name"] for d in record["data"]] == ["six", "five", "three"]
    assert [len(d["channels"]) for d in record["data"]] == [6, 5, 3]
    quota = quotas([1, 2, 1])
    source_B, _ = assign(np.arange(8), tuple(quota), seed=0)
    row = run.history[0]
    assert {f"channel/{c}" for c in SIX} <= row.keys()
    # The loss is the mean over samples, so it is the data sets' losses weighted by their samples (fp32 sums).
    parts = sum(
        row[f"data/{n}"] * (source_B == s).mean() for s, n in enumerate(mixture) if (source_B == s).any()
    )
    assert row["loss"] == pytest.approx(parts, rel=1e-5)
    assert {"val_loss", "val_data/six", "val_data/five", "val_data/three"} <= run.history[-1].keys()
    assert camae.load(run.path).channels == list(SIX)


def test_a_token_budget_changes_no_loss(screens, train, tmp_path):
    """Same crops, same masks, same normalization: losses differ by the order of fp32 sums alone."""
    data = [(screens[0], 1), (screens[2], 1)]
    whole = train(data, tmp_path / "whole", 3, optimizer="adamw")
    cut = train(data, tmp_path / "cut", 3, optimizer="adamw", token_budget=6 * 16)
    for a, b in zip(whole.history, cut.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


def test_a_mixture_resumes_bitwise(screens, train, tmp_path, interrupt):
    data = [(screens[0], 1), (screens[1], 1)]
    whole = train(data, tmp_path / "whole")
    with interrupt(4):
        train(data, tmp_path / "parts", checkpoint_every=3)
    resumed = train(data, tmp_path / "parts", checkpoint_every=3)
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]
    with pytest.warns(UserWarning, match="other sites than now"):
        train([(screens[0], 2), (screens[1], 1)], tmp_path / "parts", checkpoint_every=3)


def test_8_and_16_bit_screens_mix(screens, train, tmp_path):
    for path in screens[2].parent.glob("*.tif"):
        tifffile.imwrite(path, (tifffile.imread(path) // 32).astype(np.uint8))
    sources = open_data([(screens[0], 1), (screens[2], 1)])
    batch = MixedLoader(sources, crop=32, batch_size=16).batch_at(0)
    assert batch.planes_KHW.dtype == torch.uint16
    eight = MixedLoader(sources[1:], crop=32, batch_size=4).batch_at(0)
    assert eight.planes_KHW.dtype == torch.uint8
    small = batch.part(int((batch.source_B == 0).sum()), 16)
    assert small.planes_KHW.numpy().max() < 256
    assert train([(screens[0], 1), (screens[2], 1)], tmp_path / "run", 1).history[0]["loss"] > 0


def test_forms_of_data(screens, tmp_path):
    toml = tmp_path / "data.toml"
    toml.write_text('[a]\ndata = "c6/manifest.csv"\nweight = 3\n[b]\ndata = "c3/manifest.csv"\n')
    sources = open_data(toml)
    assert [(s.name, s.weight, len(s.manifest)) for s in sources] == [("a", 3.0, 4), ("b", 8, 8)]
    assert [s.name for s in open_data([screens[0], screens[0]])] == ["c6", "c6_2"]
    assert open_data(screens[0])[0].name == "c6"
    toml.write_text("[a]\nweight = 3\n")
    for bad, sentence in ((toml, r"\[a\] needs data"), ([], "no data set"), ([(screens[0], 1, 2)], "pair")):
        with pytest.raises(CamaeError, match=sentence):
            open_data(bad)
    with pytest.raises(CamaeError, match="weights of data sets must be positive"):
        MixedLoader([Source("a", sources[0].manifest, 0.0)], crop=32, batch_size=4)


def test_unreadable_sites_are_listed_with_the_run(screens, train, tmp_path):
    bad = screens[1].parent / "P1_A02_RNA.tif"
    bad.write_bytes(b"")
    with pytest.raises(CamaeError, match=r"P1_A02_RNA\.tif"):
        train(screens[:2], tmp_path / "strict", 8)
    run = train(screens[:2], tmp_path / "lenient", 8, max_bad_share=0.2)
    listed = json.loads((run.path / "bad_sites.json").read_text())
    table = pd.read_csv(screens[1])
    row = table.index[(table.Metadata_Plate == "P1") & (table.Metadata_Well == "A02")][0]
    assert list(listed) == ["c5"]
    assert list(listed["c5"]) == [str(row)]
    assert "P1_A02_RNA.tif" in listed["c5"][str(row)]


def test_a_format_is_of_the_folders_beside_tables(screens, train, tmp_path):
    """With a table alone it is refused."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for row, path in enumerate(sorted(screens[2].parent.glob("*.tif"))[:4]):
        shutil.copy(path, folder / f"P1_A{row + 1:02d}_s1_DNA.tif")
    pattern = r"(?P<plate>\w+)_(?P<well>\w+)_s(?P<site>\d)_(?P<channel>\w+)\.tif"
    for data in ([folder, screens[0]], {"a": (folder, 2.0), "b": (Manifest.read(screens[0]), 1.0)}):
        sources = open_data(data, pattern=pattern)
        assert [len(source.manifest) for source in sources] == [4, len(Manifest.read(screens[0]))]
    with pytest.raises(CamaeError, match="names its files itself: format and pattern are of folders"):
        open_data([screens[0]], pattern=pattern)
