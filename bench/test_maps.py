"""Speed of camae.maps beside the tools in use: efaar-benchmarking (TVN, recall, consistency), copairs (AP).

Floors, for the table sizes: TVN 50,000 x 1024: one 105 GFLOP product in fp32. Recall, 10,000 x 128: 2 x 13 GFLOP and
two passes over 5e7 cosines. Curve, 20,000 x 128: 2 x 51 GFLOP, 2e8 cosines. AP, 20,000 profiles: one 102 GFLOP product
and 7 comparisons for each of 4e8 cosines. Consistency: one pass over the table.

Every case runs small by default; `--full` runs the table sizes with the competitor, interleaved, and appends rows to
bench/results/<machine>/maps.jsonl.
"""

import json
import os
import sys
import time
import tracemalloc
import types
from importlib.metadata import version

import numpy as np
import pandas as pd
import pytest
from rows import ROOT, commit, device_name, machine, versions

from camae import maps
from camae.kernels.arrays.cosine_tails import order_statistics

EFAAR = "efaar-benchmarking"

FOLDER = ROOT / "bench" / "results" / device_name("cpu")


@pytest.fixture
def full(request) -> bool:
    return request.config.getoption("--full")


@pytest.fixture
def timed(benchmark, full):
    """Check, time `ours` (and with --full `theirs` once, in between) and, with --full, append a row.

    Competitors take minutes, so they run once. CPU seconds stand beside wall seconds: other work on the machine
    does not change them much, and load_average says how much there was.
    """

    def run(
        op, case, shape, ours, check, theirs=None, competitor=None, dtype="float32", rounds=3, target=None
    ):
        check()
        wall, cpu = [], []
        other = (None, None)
        for k in range(rounds):
            wall_k, cpu_k = _clocked(ours if k else lambda: benchmark.pedantic(ours, rounds=1, iterations=1))
            wall.append(wall_k)
            cpu.append(cpu_k)
            if full and theirs is not None and k == 0:
                other = _clocked(theirs)
        if not full:
            return
        tracemalloc.start()
        ours()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        median, p20, p80 = np.percentile(wall, [50, 20, 80])
        row = {
            "op": op,
            "case": case,
            "shape": list(shape),
            "dtype": dtype,
            "backend": "numpy",
            "device": device_name("cpu"),
            "cpu": machine("cpu")["cpu"],
            "threads": os.environ.get("OMP_NUM_THREADS", "default"),
            "versions": versions()
            | ({competitor: version(competitor)} if competitor in ("copairs", EFAAR) else {}),
            "commit": commit(),
            "seconds": {"median": median, "p20": p20, "p80": p80, "rounds": rounds},
            "cpu_seconds": float(np.median(cpu)),
            "peak_MB": round(peak / 1e6, 1),
            "load_average": round(os.getloadavg()[0], 2),
            "competitor": competitor,
            "competitor_seconds": other[0],
            "competitor_cpu_seconds": other[1],
            "ratio": other[0] / median if other[0] else None,
            "correct": True,
            "target": target,
        }
        FOLDER.mkdir(parents=True, exist_ok=True)
        with (FOLDER / "maps.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    return run


def _clocked(call):
    """Wall and CPU seconds of this process."""
    start, start_cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - start_cpu


@pytest.fixture
def efaar(full):
    """efaar-benchmarking as a black box; scvi-tools, which it imports and these functions do not use, is a stand-in."""
    if not full:
        return None
    if "scvi" not in sys.modules:
        model = types.ModuleType("scvi.model")
        model.SCVI = None
        sys.modules |= {"scvi": types.ModuleType("scvi"), "scvi.model": model}
    pytest.importorskip("efaar_benchmarking")
    from efaar_benchmarking import benchmarking, efaar

    return types.SimpleNamespace(align=efaar, benchmark=benchmarking)


def _eigh_script(x, batch, control):
    """What one writes by hand: the same steps with eigh, all in fp64, every row through every step."""
    x = x.astype(np.float64)
    x = (x - x[control].mean(0)) / x[control].std(0)
    own = x[control] - x[control].mean(0)
    _, axes = np.linalg.eigh(own.T @ own)
    x = x @ axes[:, ::-1]
    x = (x - x[control].mean(0)) / x[control].std(0)
    for name in np.unique(batch):
        rows = batch == name
        values, vectors = np.linalg.eigh(np.cov(x[rows & control].T) + 0.5 * np.eye(x.shape[1]))
        x[rows] = x[rows] @ (vectors / np.sqrt(values) @ vectors.T)
    return x


@pytest.mark.parametrize("competitor", [EFAAR, "eigh script"])
def test_tvn(timed, full, efaar, competitor):
    def table(n, d):
        x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
        return x, np.repeat([f"b{i}" for i in range(8)], n // 8), np.arange(n) % 10 == 0

    def check():
        x, batch, control = table(1600, 12)
        expected, got = _eigh_script(x, batch, control), maps.align(x, "tvn", batch, control)
        np.testing.assert_allclose(got * np.sign((got * expected).sum(0)), expected, atol=1e-3)

    n, d = (50_000, 1024) if full else (4000, 128)
    x, batch, control = table(n, d)
    meta = pd.DataFrame({"pert": np.where(control, "ctl", "x"), "batch": batch})
    theirs = {
        EFAAR: lambda: efaar.align.tvn_on_controls(x.astype(np.float64), meta, "pert", "ctl", "batch"),
        "eigh script": lambda: _eigh_script(x, batch, control),
    }[competitor]

    def ours():
        return maps.align(x, "tvn", batch, control)

    timed("tvn", f"8 batches, {n // 10} controls", (n, d), ours, check, theirs, competitor, target="<= 6 s")


def _ledoit_wolf_script(x, batch, control):
    """What one writes by hand: standardized on each batch's controls, then whitened by scikit-learn's covariance."""
    from sklearn.covariance import ledoit_wolf

    x, residual = x.astype(np.float64), []
    for name in np.unique(batch):
        rows = batch == name
        x[rows] = (x[rows] - x[rows & control].mean(0)) / x[rows & control].std(0)
        residual.append(x[rows & control])
    values, vectors = np.linalg.eigh(ledoit_wolf(np.concatenate(residual), assume_centered=True)[0])
    return x @ (vectors / np.sqrt(values) @ vectors.T)


@pytest.mark.parametrize("method", ["tvn_shrunk", "replicate_whitening"])
def test_shrunk_covariance(timed, full, method):
    n, d = (50_000, 1024) if full else (4000, 128)

    def table(n, d):
        x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
        return x, np.repeat([f"b{i}" for i in range(8)], n // 8), np.arange(n) % 10 == 0

    def check():
        x, batch, control = table(8000, 12)
        # scikit-learn divides by n and weighs fourth moments as if means were known: 1 / 100 of a batch's controls.
        expected, got = _ledoit_wolf_script(x, batch, control), maps.align(x, "tvn_shrunk", batch, control)
        assert np.abs(got - expected).max() < 0.02 * np.abs(expected).max()

    x, batch, control = table(n, d)
    perturbation = np.where(control, "ctl", np.array([f"p{i}" for i in np.arange(n) // 4]))

    def ours():
        return maps.align(x, method, batch, control, perturbation=perturbation)

    def theirs():
        return _ledoit_wolf_script(x, batch, control)

    timed(method, f"8 batches, {n // 10} controls", (n, d), ours, check, theirs, "scikit-learn script")


def _genes(n, d, per_source, sources):
    rng = np.random.default_rng(0)
    names = np.array([f"g{i:05d}" for i in range(n)])
    pairs = {s: names[rng.integers(0, n, (per_source, 2))] for s in sources}
    return rng.normal(size=(n, d)).astype(np.float32), names, pairs


def _check_recall():
    v, names, pairs = _genes(120, 8, 400, ("one",))
    cosine = maps.relate(v.astype(np.float64))
    null = np.sort(cosine[np.triu_indices(120, 1)])
    index = np.unique(np.sort(np.searchsorted(names, pairs["one"]), axis=1), axis=0)
    known = cosine[index[:, 0], index[:, 1]][index[:, 0] != index[:, 1]]
    below, above = (np.searchsorted(null, known, side=side) / len(null) for side in ("right", "left"))
    assert (
        maps.recall(v.astype(np.float64), names, pairs).n_found.iloc[0]
        == ((below <= 0.05) | (above >= 0.95)).sum()
    )


def test_recall_of_five_sources(timed, full, efaar, tmp_path):
    n, d = (10_000, 128) if full else (1500, 32)
    v, names, pairs = _genes(
        n, d, 37_000 if full else 2000, ("CORUM", "HuMAP", "Reactome", "SIGNOR", "StringDB")
    )
    for source, listed in pairs.items():
        pd.DataFrame(listed, columns=["entity1", "entity2"]).to_csv(tmp_path / f"{source}.txt", index=False)

    def theirs():
        from sklearn.utils import Bunch

        table = Bunch(metadata=pd.DataFrame({"gene": names}), features=pd.DataFrame(v))
        efaar.benchmark.known_relationship_benchmark(table, "gene", benchmark_data_dir=str(tmp_path))

    def ours():
        # Both read the files.
        return maps.recall(v, names, maps.read_pairs_folder(tmp_path))

    timed("recall", "5 sources", (n, d), ours, _check_recall, theirs, EFAAR, target="<= 1 s")


def test_recall_curve(timed, full):
    n, d = (20_000, 128) if full else (2000, 32)
    v, names, pairs = _genes(n, d, 50_000 if full else 3000, ("one",))
    shares = np.arange(1, 101) / 101

    def ours():
        return maps.recall_curve(v, names, pairs, shares)

    timed("recall_curve", "100 percentiles", (n, d), ours, _check_recall, target="<= 4 s, < 1000 MB")


@pytest.mark.parametrize("profiles", [5000, 20_000])
def test_average_precision_all_negatives(timed, full, profiles, tmp_path, monkeypatch):
    rules = (["pert"], [], [], ["pert"])

    def table(n, d):
        x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
        return x, pd.DataFrame({"pert": np.arange(n) // 8})

    def check():
        x, meta = table(160, 8)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        order = np.argsort(-(unit[1:] @ unit[0]))
        hits = (meta.pert.to_numpy()[1:] == 0)[order]
        expected = (np.cumsum(hits) / np.arange(1, 160))[hits].mean()
        assert abs(maps.average_precision(x, meta, *rules).average_precision.iloc[0] - expected) < 1e-6

    def theirs():
        from copairs import map as copairs_map

        monkeypatch.setenv("HOME", str(tmp_path))
        ap = copairs_map.average_precision(meta, x, *rules, progress_bar=False)
        copairs_map.mean_average_precision(
            ap, ["pert"], 10_000, 0.05, 0, cache_dir=tmp_path, progress_bar=False
        )

    n, d = (profiles, 128) if full else (profiles // 10, 32)
    x, meta = table(n, d)

    def ours():
        return maps.retrieval(x, meta, *rules)

    # copairs needs minutes and more than 10 GB for 20,000 profiles: it is timed at 5,000.
    rival = (theirs, "copairs") if profiles == 5000 else (None, None)
    goal = None if profiles == 5000 else "<= 8 s, < 2000 MB"
    case = "all negatives, 8 replicates, adaptive null"
    timed("average_precision", case, (n, d), ours, check, *rival, target=goal)


def _plates(profiles, d):
    """Plates of 320 treated wells and 64 controls; 8 replicates of each perturbation, on 8 plates."""
    n = profiles // 384 * 384
    place = np.arange(n) % 384
    meta = pd.DataFrame({"plate": np.arange(n) // 384, "control": place < 64})
    meta["pert"] = np.where(meta.control, -1, meta.plate // 8 * 384 + place)
    return np.random.default_rng(0).normal(size=(n, d)).astype(np.float32), meta


def test_average_precision_of_plates_with_the_exact_null(timed, full, tmp_path, monkeypatch):
    rules = (["pert"], [], ["plate"], ["control"])
    x, meta = _plates(19_968 if full else 3072, 128 if full else 16)
    query = ~meta.control.to_numpy()

    def check():
        # A third of the p values against 20,000 random rankings: 5 binomial standard errors.
        small, labels = _plates(3072, 8)
        ap = maps.average_precision(small, labels, *rules, query=~labels.control.to_numpy()).iloc[::3]
        exact = maps.average_precision_p_values(ap)
        drawn = maps.average_precision_p_values(ap, 20_000, null="permutation").p_value
        assert set(exact["null"]) == {"grid"}
        noise = 5 * np.sqrt(exact.p_value * (1 - exact.p_value) / 20_000) + 2 / 20_000 + 0.01 * exact.p_value
        assert (np.abs(exact.p_value - drawn) < noise).all()

    def theirs():
        from copairs import map as copairs_map

        monkeypatch.setenv("HOME", str(tmp_path))
        ap = copairs_map.average_precision(meta, x, *rules, progress_bar=False)
        ap = ap[(ap.pert >= 0) & (ap.n_pos_pairs > 0)]
        copairs_map.mean_average_precision(
            ap, ["pert"], 10_000, 0.05, 0, cache_dir=tmp_path, progress_bar=False
        )

    def ours():
        return maps.retrieval(x, meta, *rules, query=query)

    case = "64 controls of the plate, 8 replicates, exact null (theirs: null of 10,000)"
    timed("average_precision", case, x.shape, ours, check, theirs, "copairs", target="< 3 s")


def test_activity_by_three_measures(timed, full):
    perturbations, d = (300, 512) if full else (20, 16)
    rng = np.random.default_rng(0)
    plate = np.repeat(np.arange(4), perturbations + 64).astype(str)
    place = np.tile(np.arange(perturbations + 64), 4)
    by = np.where(place < perturbations, place, -1).astype(str)
    x = rng.normal(size=(len(by), d)).astype(np.float32)

    def check():
        some = np.isin(by, ["-1", "0", "1"])
        row = maps.activity(x[some], by[some], by[some] == "-1", plate[some]).iloc[0]
        meta = pd.DataFrame({"by": by[some], "plate": plate[some], "control": by[some] == "-1"})
        ap = maps.average_precision(x[some], meta, "by", [], "plate", "control", query=by[some] == "0")
        assert abs(row.average_precision - ap.average_precision.mean()) < 1e-5

    def ours():
        return maps.activity(x, by, by == "-1", plate)

    case = f"{perturbations} perturbations of 4 wells, 256 controls, three permutation tests"
    timed("activity", case, x.shape, ours, check, target="< 30 s")


def test_consistency(timed, full, efaar):
    n, d, perturbations = (50_000, 128, 2000) if full else (3000, 32, 100)
    rng = np.random.default_rng(0)
    x, by = rng.normal(size=(n, d)), np.array([f"p{i}" for i in rng.integers(0, perturbations, n)])
    null = [f"p{i}" for i in range(perturbations // 10)]
    meta = pd.DataFrame({"pert": by})

    def check():
        own = x[by == "p0"]
        cosine = maps.relate(own)[np.triu_indices(len(own), 1)]
        value = maps.consistency(x, by).set_index("perturbation").consistency["p0"]
        assert abs(value - cosine.mean()) < 1e-12

    def theirs():
        efaar.benchmark.pert_signal_consistency_benchmark(x, meta, "pert", null, n_jobs=1)

    def ours():
        return maps.consistency(x, by, null)

    case = f"{perturbations} perturbations"
    timed("consistency", case, (n, d), ours, check, theirs, EFAAR, dtype="float64", target="<= 2 s")


def test_cosine_tails(timed, full):
    n, d = (20_000, 128) if full else (3000, 64)
    x = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)

    def ranks(n):
        total = n * (n - 1) // 2
        return [total // 20, total - total // 20]

    def check():
        expected = np.sort((x[:300].astype(np.float64) @ x[:300].T)[np.triu_indices(300, 1)])[ranks(300)]
        np.testing.assert_allclose(order_statistics(x[:300], ranks(300)), expected, atol=1e-5)

    def theirs():
        np.sort((x[:10_000] @ x[:10_000].T)[np.triu_indices(10_000, 1)])

    def ours():
        return order_statistics(x, ranks(n))

    timed("cosine_tails", "both 5 % tails", (n, d), ours, check, theirs, "sort of a quarter of the pairs")
