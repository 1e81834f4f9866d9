"""`camae paper`: every cell holds a value or a reason, and the quick run covers every family."""

import gzip
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from camae import cli
from camae.dataloader.datasets import read_manifest
from camae.dataloader.plane_batch import PlaneBatch
from camae.embedding_table import make_table
from camae.errors import CamaeError
from camae.model import registry as families
from camae.reproduction.benchmark.feature_table import read_cellprofiler
from camae.reproduction.benchmark.gene_sets import read_gene_sets
from camae.reproduction.paper import published
from camae.reproduction.paper.evaluate_system import Outcome, recorded_channel_map
from camae.reproduction.paper.paper_figures import feature_scores
from camae.reproduction.paper.paper_settings import settings_lines, settings_rows
from camae.reproduction.paper.paper_systems import PAPER, SMALLEST, chosen
from camae.reproduction.paper.run_paper import PAPER_RUN, run_paper
from camae.reproduction.paper.system_flops import training_flops
from camae.training.recipes import TABLE_3

BENCH = Path(__file__).parents[3] / "bench"


def test_cells_without_data_or_weights_say_why(screen, tmp_path):
    found = run_paper(screen, tmp_path / "out", systems=["random", "pixel", "imagenet"])
    assert found == json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["families"]) == {s.family for s in SMALLEST}
    assert found["families"]["pixel"]["status"] == "done"
    assert "no weights" in found["families"]["imagenet"]["reason"]
    assert found["families"]["mu_net"]["reason"] == "not among the systems chosen"
    for name in ("table2", "table3", "table4", "table5"):
        assert (tmp_path / "out" / f"{name}.csv").is_file()
    assert all("no known pairs were given" in row.values() for row in found["tables"]["table2"])
    assert "no known pairs" in found["figures"]["figure5_left"]
    assert "CellProfiler" in found["figures"]["figure6"]
    page = (tmp_path / "out" / "paper.html").read_text()
    assert page.count("<summary>Published</summary>") == 4


def test_the_papers_sizes_need_a_gpu(screen, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    found = run_paper(screen, tmp_path / "out", systems=["mae_vit", "mu_net"], size="paper")
    assert found["families"]["mae_vit"]["reason"] == "needs a GPU"
    assert {r["status"] for r in found["families"]["mu_net"]["systems"]} == {"unavailable"}


def test_a_channel_map_is_recorded(tmp_path):
    """ImageNet weights for six channels and images of three: one image channel serves four times."""
    pytest.importorskip("safetensors")
    if importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None:
        pytest.skip("timm or torchvision is absent")
    from safetensors.torch import save_file

    from camae.reproduction.systems import imagenet
    from camae.reproduction.systems._torchvision import import_timm

    torch.manual_seed(0)
    small = import_timm().create_model("vit_tiny_patch16_224", num_classes=10)
    save_file(small.state_dict(), tmp_path / "vit_tiny_patch16_224.safetensors")
    channel_map = {c: ("DNA", "ER", "Mito")[min(i, 2)] for i, c in enumerate("ABCDEF")}
    model = imagenet.load_imagenet(
        "imagenet_vit_ti16",
        tmp_path / "vit_tiny_patch16_224.safetensors",
        tuple(channel_map),
        channel_map=channel_map,
        crop=48,
    )
    assert recorded_channel_map(model) == channel_map


def test_systems_are_chosen_by_name_or_family():
    assert [s.name for s in chosen("smallest", ["pixel", "ca_mae"])] == ["pixel", "ca_mae", "ca_mae_plus"]
    with pytest.raises(CamaeError, match="no system nothing"):
        chosen("smallest", ["nothing"])
    assert {s.family for s in SMALLEST} == {s.family for s in PAPER}


def test_every_backbone_of_the_papers_table_has_a_system():
    """At the paper's size; intermediate checkpoints come from `checkpoints="all"`."""
    rows = {(g, b) for g, block in published.TABLE_3.items() for b, _, _ in block if "Intermediate" not in g}
    assert rows <= {(s.group, s.backbone) for s in PAPER}


def test_channel_agnostic_rows_are_trained_as_the_recipes_say():
    """Each row's recipe is of its preset, its "+" is the Fourier loss, and the run's batch is the recipe's."""
    rows = [s for s in PAPER if s.family == "ca_mae"]
    assert len(rows) == 3
    for system in rows:
        settings = TABLE_3[system.recipe["recipe"]]
        assert settings["model"] == system.preset
        assert (settings["alpha"] > 0) == system.backbone.endswith("+")
        assert {k: PAPER_RUN[k] for k in ("batch_size", "micro_batch")}.items() <= settings.items()


# Paper, sections 4.2 and 5: by backbone; "+" is the Fourier loss with alpha 0.01, MU-Nets are trained as in Xun et al.
MASKED = {
    "MU-Net-M": "0.25",
    "MU-Net-L": "0.25",
    **dict.fromkeys(("MAE ViT-S/16", "MAE ViT-B/16", "MAE ViT-L/16", "MAE ViT-L/16+"), "0.25"),
    **dict.fromkeys(("MAE ViT-B/8", "MAE ViT-L/8+", "CA-MAE ViT-B/16", "CA-MAE ViT-B/16+"), "0.75"),
    "CA-MAE ViT-L/16+": "0.85",
}


def test_every_system_resolves_to_the_papers_settings(screen):
    """The masks, losses, batch, decoders and drop path that `--size paper` prints before it trains."""
    rows = {row["Model backbone"]: row for row in settings_rows(PAPER, PAPER_RUN, read_manifest(screen))}
    assert {name: row["mask ratio"] for name, row in rows.items() if row["mask ratio"] != "none"} == MASKED
    assert {row["batch"] for row in rows.values()} == {"16,384 crops"}
    assert {row["optimizer"] for row in rows.values()} == {"lion"}
    for name, row in rows.items():
        assert row["Fourier loss"] == ("alpha 0.01" if name.endswith("+") else "none"), name
        if "ViT" in name:
            assert row["drop path"] == ("0.3" if "ViT-L" in name else "0.1"), name
        if name.startswith("CA-MAE"):
            assert row["decoder"] == "one for each channel, 8 x 512"
        elif name.startswith("MAE"):
            assert row["decoder"] == "self-attention only, 8 x 512"
    line = settings_lines([rows["CA-MAE ViT-L/16+"]])[0]
    assert line.startswith(
        "CA-MAE ViT-L/16+: preset ca_mae_vit_l16, crop 256 px, patch 16 px, mask ratio 0.85"
    )


@pytest.mark.parametrize("name", ["mae_vit_ti16", "mu_net_ti", "wsl_vit_ti16"])
def test_moments_are_mean_and_standard_deviation_over_places(name):
    """One and the same read-out for every family: against NumPy on the tokens of one image."""
    labels = {"classes": ("a", "b")} if name.startswith("wsl") else {}
    model = families.build(name, channels=("a", "b"), crop=64, **labels).eval()
    pixels = torch.arange(2 * 64 * 64).reshape(1, 2, 64, 64).remainder(251).to(torch.uint8)
    batch = PlaneBatch.from_images(list(pixels), [["a", "b"]])
    with torch.no_grad():
        moments = model.embed_batch(batch, "moments")[0].numpy()
        if name == "mu_net_ti":
            places = model.encoder(model.images(batch, model.eps(batch)))[-1][0].flatten(1).numpy().T
        else:
            layout = model.full_layout(batch)
            tokens = model.encoder(batch, model.plane_index(batch), layout, eps=model.eps(batch))
            places = (model.norm(tokens) if name.startswith("wsl") else tokens)[1:].numpy()
    truth = np.concatenate([places.astype(float).mean(0), places.astype(float).std(0)])
    np.testing.assert_allclose(moments, truth, rtol=0, atol=2e-6 * np.abs(places).max())


@pytest.mark.parametrize("system", SMALLEST, ids=lambda s: s.name)
def test_every_system_builds_at_its_size(system):
    if not system.trains:
        return
    if system.family == "wsl_densenet" and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is absent")
    options = dict(system.options) | {"channels": tuple("ABCDE")}
    if system.family.startswith("wsl"):
        options["classes"] = ("a", "b")
    with torch.device("meta"):
        model = families.build(system.preset, **options)
    count = sum(p.numel() for p in model.parameters())
    assert 5e4 < count < 2e6
    assert training_flops(model) > 6 * model.config.crop**2 * 5


@pytest.mark.parametrize("name", ["ca_mae_vit_b16", "ca_mae_vit_l16"])
def test_flops_agree_with_the_floors_of_the_bench(name, bench_module):
    """camae's count of a training crop against bench/floors.py, encoder and small decoder, six channels.

    The floors project every token of a crop, camae's small decoder shares mask-token projections over the step:
    the decoder, under a tenth of the whole, differs by less than a third, so the sum by less than 3 %.
    """
    floors = bench_module("floors")
    with torch.device("meta"):
        model = families.build(name, channels=tuple("ABCDEF"), decoder="small")
    c = model.config
    shape = floors.Shape("x", c.width, c.depth, c.patch, c.mask_ratio)
    want = 3 * (floors.encoder_flops(shape) + floors.small_decoder_flops(shape))
    assert training_flops(model) == pytest.approx(want, rel=0.03)


def test_flops_of_a_convolutional_model_by_hand():
    """MU-Net of two levels without blocks: stem, down, up, join, head; 2 per multiply-add, three for training."""
    model = families.build(
        "mu_net_ti", channels=("a", "b"), widths=(8, 16), depth=0, decoder_depth=0, crop=32, patch=8
    )
    full, half = 32 * 32, 16 * 16
    macs = full * 9 * 2 * 8 + half * 4 * 8 * 16 + half * 4 * 16 * 8 + full * 9 * 16 * 8 + full * 8 * 2
    assert training_flops(model) == 3 * 2 * macs


def test_feature_regression_by_system():
    """Features that are linear in one embedding and noise for the other: R^2 near 1 and near or below 0."""
    rng = np.random.default_rng(0)
    plates = np.repeat(["P1", "P2", "P3"], 60)
    metadata = pd.DataFrame({"Metadata_Plate": plates, "Metadata_Well": [f"W{i}" for i in range(180)]})
    x = rng.standard_normal((180, 4))
    y = pd.DataFrame(x @ rng.standard_normal((4, 2)), columns=["Cells_AreaShape_Area", "Cells_Texture_X"])
    outcomes = [
        Outcome(SMALLEST[0], "done", wells=make_table(metadata, rng.standard_normal((180, 4)))),
        Outcome(SMALLEST[1], "done", wells=make_table(metadata, x)),
    ]
    scores = feature_scores(outcomes, pd.concat([metadata, y], axis=1))
    assert scores[SMALLEST[1].backbone]["AreaShape"] > 0.999
    assert scores[SMALLEST[0].backbone]["Texture"] < 0.2


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv", ".parquet"])
def test_fault_10_cellprofiler_features_are_read_as_all_profiles_are(tmp_path, suffix):
    """From any table; object numbers and counts of images are no features; wells by their normal names."""
    table = pd.DataFrame(
        {
            "Metadata_Plate": ["0012", "0012"],
            "Metadata_Well": ["a1", "A02"],
            "ImageNumber": [1, 2],
            "Cells_AreaShape_Area": [1.5, 2.5],
            "Nuclei_ObjectNumber": [7, 8],
        }
    )
    path = tmp_path / f"features{suffix}"
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    with pytest.warns(UserWarning, match="features left out"):
        found = read_cellprofiler(path)
    assert list(found.columns) == ["Metadata_Plate", "Metadata_Well", "Cells_AreaShape_Area"]
    assert found.to_numpy().tolist() == [["0012", "A01", 1.5], ["0012", "A02", 2.5]]
    assert read_cellprofiler(None) is None


def test_cellprofiler_tables_that_cannot_be_matched_are_refused(tmp_path):
    path = tmp_path / "features.csv"
    path.write_text("Metadata_Well,Cells_AreaShape_Area\nA01,1.5\n")
    with pytest.raises(
        CamaeError, match=r"features\.csv: has no column Metadata_Plate, so that its features"
    ):
        run_paper(tmp_path / "absent", tmp_path / "out", cellprofiler=path)
    path.write_text("Metadata_Plate,Metadata_Well,Cells_AreaShape_Area\nP,A01,1.5,\n")
    with pytest.raises(CamaeError, match=r"features\.csv, line 2: 4 cells where the header names 3 columns"):
        read_cellprofiler(path)
    assert not (tmp_path / "out").exists()


def test_gene_sets_are_read_as_text(tmp_path):
    """NA is a gene; zipped and upper-case files are read; what is no list of genes is refused with its line."""
    (tmp_path / "ours.txt").write_bytes(b"TP53\r\nNA\r\n\r\n 0012 \r\n")
    (tmp_path / "more.TXT.gz").write_bytes(gzip.compress(b"MYC\n"))
    assert read_gene_sets(tmp_path) == {"more": ["MYC"], "ours": ["TP53", "NA", "0012"]}
    assert read_gene_sets(None) == {}
    for content, words in (
        (b"TP53,MYC\nNA,A\n", r"wrong\.txt, line 1: holds 2 cells where a line has one gene"),
        (b"TP53\nM\xffC\n", r"wrong\.txt, line 2: not UTF-8 text"),
        (b"", r"wrong\.txt: the file is empty"),
    ):
        (tmp_path / "wrong.txt").write_bytes(content)
        with pytest.raises(CamaeError, match=words):
            read_gene_sets(tmp_path)
    (tmp_path / "wrong.txt").unlink()
    (tmp_path / "ours.TXT").write_text("MYC\n")
    with pytest.raises(CamaeError, match="another file of the folder holds the gene set ours; keep one"):
        read_gene_sets(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CamaeError, match=r"holds no \.txt file with the genes of a set, one in a line"):
        read_gene_sets(tmp_path / "empty")
    with pytest.raises(CamaeError, match="no such folder of gene sets"):
        read_gene_sets(tmp_path / "absent")


def test_saved_steps_become_rows(tmp_path):
    """`checkpoints="all"` on a screen just large enough: a row for every saved step, with its validation loss."""
    from camae.reproduction.demo.generate_screen import generate

    data = generate(tmp_path / "screen", plates=2, sites=1, size=128)
    found = run_paper(
        data,
        tmp_path / "out",
        systems=["wsl_vit"],
        checkpoints="all",
        pairs=data / "relationships",
        recipe={"steps": 2, "batch_size": 2, "checkpoint_every": 1},
        quick=True,
    )
    first, last = found["families"]["wsl_vit"]["systems"]
    assert first["backbone"] == "ViT-ti/16 (step 1)"
    assert (first["training_crops"], last["training_crops"]) == (2, 4)
    assert np.isfinite([first["val_loss"], last["val_loss"]]).all()
    names = [row["Model backbone"] for row in found["tables"]["table3"]]
    assert names == ["ViT-ti/16", "ViT-ti/16 (step 1)"]


@pytest.mark.full
def test_quick_run_covers_every_family_in_five_minutes(tmp_path, monkeypatch):
    """Without arguments, as a new user would: exit code 0, no weights, a reason in every empty cell."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["camae", "paper", "--quick"])
    began = time.perf_counter()
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code in (0, None)
    assert time.perf_counter() - began < 300
    found = json.loads((tmp_path / "camae-paper" / "results.json").read_text())
    assert set(found["families"]) == {s.family for s in SMALLEST}
    for family, entry in found["families"].items():
        assert entry["status"] == "done" or entry["reason"], family
        for row in entry["systems"]:
            if row["status"] == "done":
                assert np.isfinite(row["recall"]["demo_pairs"]["value"]), row["system"]
                assert {"parameters", "training_crops", "training_flops", "seconds", "run"} <= set(row)
            else:
                assert row["reason"]
    recalls = [row["demo_pairs"] for row in found["tables"]["table3"]]
    assert all(recalls)
    assert (tmp_path / "camae-paper" / "paper.html").is_file()
