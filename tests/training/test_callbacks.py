"""Callbacks: the probe of the embedding, the pictures, and callbacks of one's own."""

import numpy as np
import pandas as pd
import pytest

from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError
from camae.training.callbacks import Callback
from camae.training.config import TrainConfig
from camae.training.data import open_data
from camae.training.evaluation import CenterCrops, Probe, linear_accuracy, picture_rows, reconstruct_rows
from camae.training.run_log import read_log
from camae.training.trainer import Trainer


def labeled(screen):
    """The screen's manifest with a label that its plates share."""
    manifest = Manifest.read(screen)
    label = ["a" if i % 2 else "b" for i in range(len(manifest))]
    return Manifest(manifest.table.assign(Metadata_Label=label), manifest.root)


def test_probe_is_logged_and_changes_nothing(screen, tmp_path, train):
    path = tmp_path / "labeled.csv"
    labeled(screen).write(path)
    plain = train(screen, tmp_path / "plain", 4)
    probe = {"data": str(path), "every": 2, "label": "Metadata_Label"}
    probed = train(screen, tmp_path / "probed", 4, probe=probe)
    assert [r["step"] for r in probed.history if "probe_accuracy" in r] == [2, 4]
    assert probed.history[1]["probe_chance"] == pytest.approx(0.5)
    assert [r["loss"] for r in probed.history] == [r["loss"] for r in plain.history]


@pytest.mark.parametrize(("signal", "low", "high"), [(3.0, 0.95, 1.0), (0.0, 0.0, 0.45)])
def test_linear_probe_finds_what_is_there_on_other_plates(signal, low, high):
    """Four classes along known directions, two plates: near 1 with signal, near chance (0.25) without.

    Without signal right answers are binomial(200, 1/4): mean 50, standard deviation 6.1, so under 90 surely.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 200)
    features = rng.standard_normal((200, 16)) + signal * np.eye(16)[classes] * 2
    table = pd.DataFrame(
        {
            "Metadata_Plate": [f"P{i % 2}" for i in range(200)],
            "Metadata_Label": classes.astype(str),
            "DNA": "x.tif",
        }
    )
    found = linear_accuracy(features, Manifest(table), "Metadata_Label")
    assert low <= found["probe_accuracy"] <= high
    assert found["probe_chance"] == np.bincount(classes).max() / 200


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ({"every": 3}, "probe needs data"),
        ({"data": "x.csv", "color": 1}, "unknown probe settings color"),
        ({"data": "x.csv", "kind": "knn"}, "not 'linear' or 'recall'"),
        ({"data": "x.csv", "kind": "recall"}, "needs pairs"),
        ({"data": "x.csv", "every": 0}, "at least 1"),
    ],
)
def test_bad_probes_are_one_sentence(probe, sentence):
    with pytest.raises(CamaeError, match=sentence):
        Probe.from_settings(probe)


def test_no_probe_without_settings():
    assert Probe.from_settings({}) is None


def test_recall_probe_finds_planted_pairs(tmp_path):
    """Ten pairs that share a direction of 16, twenty controls, two plates: all are in the tails; chance is 0.1."""
    rng = np.random.default_rng(0)
    names = [f"G{i}" for i in range(20)]
    axis = rng.standard_normal((10, 16))
    rows, features = [], []
    for plate in ("P1", "P2"):
        for i, name in enumerate(names):
            rows.append({"Metadata_Plate": plate, "Metadata_Perturbation": name, "Metadata_control_type": ""})
            features.append(8 * axis[i // 2] + rng.standard_normal(16))
        for _ in range(40):
            rows.append(
                {"Metadata_Plate": plate, "Metadata_Perturbation": "", "Metadata_control_type": "negcon"}
            )
            features.append(rng.standard_normal(16))
    manifest = Manifest(pd.DataFrame(rows).assign(DNA="x.tif"))
    pairs = tmp_path / "pairs.csv"
    pd.DataFrame({"a": names[::2], "b": names[1::2]}).to_csv(pairs, index=False)
    probe = Probe(data=manifest, kind="recall", pairs=pairs)
    # 5 % of 190 pairs are 9 or 10 in the upper tail, and ten are planted
    assert probe.recall(np.array(features), manifest) >= 0.9


def test_a_callback_sees_every_step_and_adds_to_the_log(screen, tmp_path, tiny):
    """The row that it asks for, the steps in order, and the exported model at the end."""
    seen = []

    class Watcher(Callback):
        def is_due(self, step):
            return step == 2

        def on_log(self, step, model):
            assert model.training
            return {"watched": float(step)} if self.is_due(step) else {}

        def on_step_end(self, step, model):
            seen.append(step)

        def on_train_end(self, model):
            seen.append(model)

    config = TrainConfig(**{k: v for k, v in tiny.items() if k != "quiet"}, steps=3, log_every=100)
    sources = open_data(screen)
    model = Trainer(config, sources, [], tmp_path / "run", quiet=True, callbacks=[Watcher()]).run(resume=True)
    assert seen == [1, 2, 3, model]
    assert [(r["step"], r.get("watched")) for r in read_log(tmp_path / "run" / "log.jsonl")] == [
        (2, 2.0),
        (3, None),
    ]


def test_pictures_are_drawn_by_request_and_at_the_end(screen, tmp_path, train):
    quiet, drawn = train(screen, tmp_path / "quiet", 1), train(screen, tmp_path / "drawn", 2, picture_every=1)
    files = {"reconstructions.npz", "reconstructions.png", "loss.png"}
    assert not files & {path.name for path in quiet.path.iterdir()}
    assert files <= {path.name for path in drawn.path.iterdir()}
    with np.load(drawn.path / "reconstructions.npz") as arrays:
        assert arrays["original"].shape == (4, 3, 32, 32)
        assert 0.7 < np.isnan(arrays["masked"]).mean() < 0.8


def mixed_screen(make_screen):
    """A screen of 12 sites, of which the first and three others lack a channel."""
    manifest = Manifest.read(make_screen("mixed", wells=6))
    table = manifest.table.copy()
    table.loc[table.index % 3 == 0, "Mito"] = ""
    return Manifest(table, manifest.root)


def test_pictures_of_a_screen_of_mixed_channel_sets(make_screen, tmp_path, train):
    manifest = mixed_screen(make_screen)
    rows = picture_rows(manifest)
    assert [manifest.site_channels(row) for row in rows] == [["DNA", "ER", "Mito"]] * 4
    assert len(set(manifest.table["Metadata_Plate"].iloc[rows])) == 1
    assert set(manifest.table["Metadata_control_type"].iloc[rows]) == {"negcon", ""}
    run = train(manifest, tmp_path / "run", 2, picture_every=1)
    with np.load(run.path / "reconstructions.npz") as drawn:
        assert drawn["original"].shape == (4, 3, 32, 32)
    batch, labels = CenterCrops(manifest).batch([0, 1], 32)
    with pytest.raises(CamaeError, match="2 samples of 5 planes do not all have the 3 channels"):
        reconstruct_rows(run.model, batch, labels, mask_ratio=0.75)
