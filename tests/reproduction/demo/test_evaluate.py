"""Evaluation of the demo: the best baseline is the one compared with, whoever wins; screens pool as stated."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.embedding_table import make_table
from camae.errors import CamaeError
from camae.maps.perturbation_map import map_screen
from camae.reporting.verdict import verdict
from camae.reproduction.demo import run_demo as demo
from camae.reproduction.demo.evaluate import (
    BASELINES,
    SYSTEMS,
    evaluate,
    pool_scores,
    pool_screens,
    read_outs,
)
from camae.reproduction.demo.generate_screen import generate
from camae.reproduction.demo.screen_parameters import ScreenParameters

D, GROUPS = 6, 8
PAIRS = np.array([(f"g{2 * i}", f"g{2 * i + 1}") for i in range(GROUPS)])


def wells(signal, width=2 * D, seed=0, moments=False):
    """Two plates of 24 controls and 16 perturbations in pairs; `signal` is how strongly pairs are alike."""
    rng = np.random.default_rng(seed)
    effects = np.repeat(np.random.default_rng(99).standard_normal((GROUPS, width)), 2, axis=0)
    rows, vectors = [], []
    for plate in ("P1", "P2"):
        for i in range(24):
            rows.append((plate, f"A{i + 1:02d}", "DMSO", "negcon"))
            vectors.append(rng.standard_normal(width))
        for i in range(2 * GROUPS):
            rows.append((plate, f"B{i + 1:02d}", f"g{i}", ""))
            vectors.append(signal * effects[i] + rng.standard_normal(width))
    names = ("Metadata_Plate", "Metadata_Well", "Metadata_Perturbation", "Metadata_control_type")
    columns = [f"emb_DNA_{m}_{i:04d}" for m in ("mean", "sd") for i in range(width // 2)] if moments else None
    return make_table(pd.DataFrame(rows, columns=names), np.array(vectors), columns)


def tables(**signals):
    found = {}
    for i, system in enumerate(SYSTEMS):
        moments = system in ("trained", "untrained")
        found[system] = [wells(signals.get(system, 0.0), seed=i, moments=moments)]
    return found


def test_read_outs_split_the_moments():
    table = wells(1.0, moments=True)
    assert list(read_outs(table)["mean"].filter(like="emb_")) == [f"emb_DNA_mean_{i:04d}" for i in range(D)]
    assert read_outs(table)["moments"].equals(table)


def test_the_best_baseline_is_compared_with(tmp_path):
    given = tables(trained=3.0, texture=3.0, pixel=0.3, oracle=9.0)
    summary = evaluate(given, PAIRS, tmp_path)
    assert tuple(summary["recall"]) == SYSTEMS
    assert summary["best_baseline"] == "texture"
    assert summary["trained_minus_best"] == summary["trained_minus"]["texture"]
    assert set(summary["trained_minus"]) == set(BASELINES)  # neither the oracle nor chance is a baseline
    mapped = {
        s: map_screen(read_outs(given[s][0])["mean"] if s == "trained" else given[s][0])
        for s in ("trained", "texture")
    }
    recall = {s: maps.recall(m.vectors, m.names, PAIRS)["recall"].iloc[0] for s, m in mapped.items()}
    assert summary["recall"]["texture"]["value"] == pytest.approx(recall["texture"])
    assert summary["trained_minus_best"]["value"] == pytest.approx(recall["trained"] - recall["texture"])
    curves = pd.read_csv(tmp_path / "recall_curves.csv")
    assert set(curves["system"]) == set(SYSTEMS)
    assert (tmp_path / "map.parquet").is_file()


def test_the_untrained_encoder_gets_its_better_read_out(tmp_path):
    given = tables(trained=1.0)
    silent = given["untrained"][0]
    loud = wells(4.0, seed=3, moments=True)
    deviations = [c for c in silent if "_sd_" in c]
    given["untrained"] = [silent.assign(**{c: loud[c] for c in deviations})]
    summary = evaluate(given, PAIRS, tmp_path)
    scores = summary["read_outs"]["untrained"]
    assert scores["moments"]["value"] > scores["mean"]["value"]
    assert summary["read_out"] == {"trained": "mean", "untrained": "moments"}
    assert summary["recall"]["untrained"] == scores["moments"]
    assert summary["recall"]["trained"] == summary["read_outs"]["trained"]["mean"]


def summary_of(trained, texture, pixel, difference, se=0.1):
    recall = {s: {"value": 0.1, "se": 0.1} for s in SYSTEMS}
    recall |= {"trained": {"value": trained, "se": se}, "texture": {"value": texture, "se": se}}
    recall["pixel"] = {"value": pixel, "se": se}
    gains = {s: {"value": trained - recall[s]["value"], "se": difference} for s in BASELINES}
    return {
        "alignment": {},
        "recall": recall,
        "recall_without_alignment": recall,
        "trained_minus": gains,
    }


def test_screens_are_pooled_against_one_baseline():
    """Texture is best on the mean, though pixel is on the first screen."""
    each = {
        1: summary_of(0.6, 0.5, 0.7, 0.1),
        2: summary_of(0.9, 0.8, 0.2, 0.2),
        3: summary_of(0.6, 0.5, 0.3, 0.2),
    }
    pooled = pool_screens(each)
    assert pooled["best_baseline"] == "texture"
    assert pooled["recall"]["trained"]["value"] == pytest.approx(0.7)
    assert pooled["recall"]["trained"]["se"] == pytest.approx(np.sqrt(3) * 0.1 / 3)
    assert pooled["trained_minus_best"]["value"] == pytest.approx(0.1)
    assert pooled["trained_minus_best"]["se"] == pytest.approx(0.3 / 3)  # the screens' own: .1, .2, .2
    # Between screens the differences from pixel spread more than each one's standard error.
    spread = np.std([-0.1, 0.7, 0.3], ddof=1) / np.sqrt(3)
    assert pooled["trained_minus"]["pixel"]["se"] == pytest.approx(spread)
    assert [s["seed"] for s in pooled["screens"]] == [1, 2, 3]
    assert pooled["screens"][0]["difference"]["value"] == pytest.approx(0.1)
    json.dumps(pooled)


@pytest.mark.parametrize(
    ("gain", "se", "begins", "has"),
    [
        (0.25, 0.10, "The trained encoder wins: ", "25.0 ± 10.0 points more"),
        (0.15, 0.10, "Training does not win: ", "1.5 standard errors, which chance alone may give."),
        (-0.05, 0.10, "Training does not win: ", "5.0 ± 10.0 points fewer"),
        (-0.30, 0.10, "Training does not win: ", "3.0 standard errors."),
        (0.0, 0.0, "Training does not win: ", "0.0 ± 0.0 points"),
    ],
)
def test_the_sentence_follows_from_the_numbers(gain, se, begins, has):
    said = verdict({"best_baseline": "texture", "trained_minus_best": {"value": gain, "se": se}})
    assert said.startswith(begins)
    assert has in said
    assert "'texture' (gradients of standardized planes)" in said


def test_an_interval_without_0_is_not_called_chance():
    """Intervals of shares are not symmetric: one may leave out 0 within two standard errors, or hold it beyond."""
    for gain, said_of_chance in (((-0.12, -0.39, -0.01), False), ((0.25, -0.02, 0.4), True)):
        score = dict(zip(("value", "low", "high"), gain, strict=True)) | {"se": 0.09}
        said = verdict({"best_baseline": "texture", "trained_minus_best": score})
        assert said.startswith("Training does not win: ")
        assert ("chance alone" in said) is said_of_chance
        what = ("holds 0", "above") if said_of_chance else ("leaves out 0", "below")
        assert f"The interval {what[0]} and the difference is {what[1]} 2 standard errors" in said
        assert said.endswith("To win takes both.")
    for gain in ((0.25, 0.05, 0.4), (0.05, -0.1, 0.2)):  # both say the same
        score = dict(zip(("value", "low", "high"), gain, strict=True)) | {"se": 0.09}
        assert "takes both" not in verdict({"best_baseline": "texture", "trained_minus_best": score})


def test_screens_have_seeds_of_their_own(tmp_path):
    assert len(set(demo.SCREEN_SEEDS)) == 5
    # Seeds on which settings were chosen or that were looked at before.
    assert not set(demo.SCREEN_SEEDS) & {ScreenParameters.seed, 7, 11, 12, 13, 4001, 4002, 4003}
    with pytest.raises(CamaeError, match="screens 6 is not a number from 1 to 5"):
        demo.run_demo(tmp_path, screens=6)
    with pytest.raises(CamaeError, match="several screens have their own seeds, 3101"):
        demo.run_demo(tmp_path, screens=2, screen_seed=11)
    with pytest.raises(CamaeError, match="seeds 0 is not a number of trainings above 0"):
        demo.run_demo(tmp_path, seeds=0)


def test_several_screens_from_start_to_report(tmp_path, monkeypatch):
    """All but the training: a small screen, the untrained encoder in place of the trained one."""
    settings = {"crop": 32, "patch": 16, "width": 32, "heads": 2, "depth": 1}
    monkeypatch.setattr(demo, "MODEL_OPTIONS", demo.MODEL_OPTIONS | settings)
    monkeypatch.setattr(demo, "SCREEN_SEEDS", (1, 2))
    small = {"plates": 1, "sites": 1, "size": 64, "workers": 1}
    monkeypatch.setattr(demo, "generate", lambda out, seed, progress: generate(out, seed=seed, **small))

    class Run:
        def __init__(self, manifest, folder, seed):
            folder.mkdir(parents=True)
            (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
            self.model, self.history = demo.untrained_model(manifest, seed), [{"crops": 8}]

    monkeypatch.setattr(demo, "_train", Run)
    summary = demo.run_demo(tmp_path, screens=2)
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert stored == json.loads(json.dumps(summary))
    assert [s["seed"] for s in stored["screens"]] == [1, 2]
    assert stored["wells"] == 2 * 96
    for seed in (1, 2):
        folder = tmp_path / "screens" / str(seed)
        own = json.loads((folder / "summary.json").read_text())
        assert own["screen_seed"] == seed
        assert own["recall"]["trained"] == own["read_outs"]["untrained"]["mean"]  # here the same encoder
        assert (folder / "report.html").is_file()
        assert {p.stem for p in (folder / "embeddings").glob("*.parquet")} >= {
            "trained-seed0",
            "texture",
            "oracle",
        }
    values = [s["difference"]["value"] for s in stored["screens"]]
    assert stored["trained_minus_best"]["value"] == pytest.approx(np.mean(values))
    page = (tmp_path / "report.html").read_text()
    assert page.index("Training does not win on 2 screens") < page.index("Known relationships</h2>")
    assert "Screen by screen" in page
    assert "Not shown" not in page


def test_intervals_over_screens_are_from_those_of_the_screens():
    scores = [
        {"value": 0.9, "se": 0.05, "low": 0.7, "high": 0.96},
        {"value": 0.8, "se": 0.05, "low": 0.6, "high": 0.9},
    ]
    found = pool_scores(scores)
    assert found["value"] == pytest.approx(0.85)
    assert found["low"] == pytest.approx(0.85 - np.hypot(0.2, 0.2) / 2)
    assert found["high"] == pytest.approx(0.85 + np.hypot(0.06, 0.1) / 2)
    apart = pool_scores(scores, between=True)
    assert apart["se"] == pytest.approx(0.1 / 2)  # the spread between the two, over the root of 2
    assert (apart["high"] - apart["low"]) / 2 == pytest.approx(2 * apart["se"])
    assert "low" not in pool_scores([{"value": 0.9, "se": 0.05}, {"value": 0.8, "se": 0.05}])
