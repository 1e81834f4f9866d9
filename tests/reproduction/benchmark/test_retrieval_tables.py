"""Tables of retrieval, activity, calibration and mechanisms, from a file to the results folder, at the shell."""

import warnings

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from camae import maps
from camae.cli import app
from camae.embedding_table import feature_columns
from camae.errors import CamaeError
from camae.reproduction.benchmark.benchmark_tables import ScreenProfiles
from camae.reproduction.benchmark.mechanism_table import NOT_BATCH, NOT_COMPOUND, mechanism_accuracy
from camae.reproduction.benchmark.retrieval_tables import RetrievalOptions, fraction_retrieved
from camae.reproduction.benchmark.run_benchmark import run_benchmark


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """24 compounds at two doses on 4 plates of 2 experiments, 6 mechanisms, half of the compounds inactive."""
    rng = np.random.default_rng(3)
    wells = [f"{row}{column:02d}" for row in "ABCDEF" for column in range(1, 13)]
    compound = np.array([f"C{i // 2:02d}" if i < 48 else "DMSO" for i in range(72)])
    number = np.array([int(name[1:]) if name != "DMSO" else 0 for name in compound])
    center = rng.normal(size=(6, 10))[number % 6] * ((compound != "DMSO") & (number < 12))[:, None] * 2
    parts = []
    for plate in range(4):
        x = center + 0.6 * rng.normal(size=(72, 10)) + rng.normal(size=10)
        part = pd.DataFrame(x.astype(np.float32), columns=feature_columns(10))
        part.insert(0, "Metadata_Plate", f"P{plate}")
        part.insert(1, "Metadata_Well", wells)
        part.insert(2, "Metadata_Perturbation", compound)
        part.insert(3, "Metadata_control_type", np.where(compound == "DMSO", "negcon", "trt"))
        part.insert(4, "Metadata_Dose", ["1" if i % 2 else "10" for i in range(72)])
        part.insert(5, "Metadata_MoA", [f"M{i % 6}" if c != "DMSO" else "" for i, c in zip(number, compound)])
        part.insert(6, "Metadata_Experiment", f"E{plate // 2}")
        parts.append(part)
    path = tmp_path_factory.mktemp("profiles") / "wells.parquet"
    pd.concat(parts, ignore_index=True).to_parquet(path, index=False)
    return path


@pytest.fixture(scope="module")
def out(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    options = [
        *("--mechanism=Metadata_MoA", "--dose=Metadata_Dose", "--experiment=Metadata_Experiment"),
        *("--permutations=200", "--null=auto", "--distance=correlation", "--threshold=0.1"),
    ]
    done = CliRunner().invoke(app, ["benchmark", str(file), f"--out={folder}", *options])
    assert done.exit_code == 0, done.output
    return folder


def test_fractions_say_what_a_perfect_ranking_could_reach(out):
    table = pd.read_csv(out / "table4.csv").set_index(["task", "alignment"])
    assert table.fraction_retrieved["perturbations", "as given"] >= 0.4
    assert {("well positions", "as given"), ("well positions", "TVN, held out")} <= set(table.index)
    assert (table.smallest_p > 0).all()
    assert (table.mean_normalized_ap < table.mean_ap).all()


def test_activity_names_its_disagreements(out):
    activity = pd.read_csv(out / "activity.csv")
    agreement = pd.read_csv(out / "agreement.csv")
    assert set(activity.alignment) == {"as given", "TVN, held out"}
    for label, part in activity.groupby("alignment"):
        counts = agreement[agreement.alignment == label].set_index("active_by").n
        assert counts.sum() == len(part) == 24
        assert part.active_by.value_counts().to_dict() == counts[counts > 0].to_dict()
    given = activity[activity.alignment == "as given"].set_index("perturbation").active_by
    strong = [f"C{i:02d}" for i in range(12)]
    assert (given[strong] == "all").mean() > 0.8
    assert (given.drop(strong) == "none").mean() > 0.6


def test_calibration_is_in_the_tables_and_on_the_page(out):
    table = pd.read_csv(out / "calibration.csv")
    p = pd.read_csv(out / "calibration_p_values.csv")
    assert set(table.groups) == {"random groups", "well positions"}
    for (label, groups, test), part in p.groupby(["alignment", "groups", "test"]):
        row = table[(table.alignment == label) & (table.groups == groups) & (table.test == test)].iloc[0]
        assert row.n == part.p_value.notna().sum()
        assert row.share_below_05 == pytest.approx((part.p_value.dropna() <= 0.05).mean(), rel=1e-15)
    random = table[(table.groups == "random groups") & ~table.test.isin(["mean_log_p", "map_null"])]
    assert (random.too_small < random.bound).all()
    page = (out / "benchmark.html").read_text()
    assert "Calibration: controls against controls" in page
    assert "average precision, labels exchanged" in page
    assert page.count("<svg") == 1


def test_mechanism_accuracy_is_that_of_the_nearest_treatment(out, file):
    table = pd.read_csv(out / "mechanisms.csv").set_index(["alignment", "neighbor"])
    wells = pd.read_parquet(file)
    wells = wells[wells.Metadata_control_type == "trt"]
    features = feature_columns(10)
    for neighbor, keys in (
        (NOT_COMPOUND, ["Metadata_Perturbation", "Metadata_Dose"]),
        (NOT_BATCH, ["Metadata_Perturbation", "Metadata_Dose", "Metadata_Experiment"]),
    ):
        mean = wells.groupby(keys, as_index=False)[[*features]].mean()
        x, compound = mean[features].to_numpy(float), mean.Metadata_Perturbation.to_numpy(str)
        cosine = x @ x.T / np.linalg.norm(x, axis=1) / np.linalg.norm(x, axis=1)[:, None]
        cosine[compound[:, None] == compound] = -np.inf
        if neighbor == NOT_BATCH:
            batch = mean.Metadata_Experiment.to_numpy(str)
            cosine[batch[:, None] == batch] = -np.inf
        number = np.array([int(name[1:]) % 6 for name in compound])
        row = table.loc["No transformation", neighbor]
        assert row.accuracy == (number[cosine.argmax(axis=1)] == number).mean()
        assert (row.n_treatments, row.n_compounds, row.n_mechanisms) == (len(mean), 24, 6)
    best = table.loc["Standardize by plate", NOT_BATCH]
    assert best.accuracy > 0.5  # half of the compounds act
    # Mechanisms shuffled over compounds: 3 of the 23 others have the same; 20 shuffles of 24 compounds.
    assert abs(best.shuffled - 3 / 23) < 5 * np.sqrt(0.13 * 0.87 / (20 * 24))


def test_mechanisms_without_neighbors_are_noted_and_without_labels_refused():
    rng = np.random.default_rng(0)
    text = {"perturbation": np.array(["a", "b", "c", *["d"] * 9]), "plate": np.array(["p"] * 12)}
    screen = ScreenProfiles(
        rng.normal(size=(12, 3)),
        control=text["perturbation"] == "d",
        mechanism=np.array(["m", "m", "n", *[""] * 9]),
        components=None,
        **text,
    )
    found = mechanism_accuracy(screen)
    assert set(found.neighbor) == {NOT_COMPOUND}
    assert any(
        note.startswith("Mechanisms, not same compound, not same batch: no row has") for note in screen.notes
    )
    screen.mechanism = np.array([""] * 12)
    with pytest.raises(CamaeError, match="no treated well has both a mechanism and a compound"):
        mechanism_accuracy(screen)
    screen.mechanism = None
    assert mechanism_accuracy(screen).empty


def test_replicate_counts_that_confound_recall_are_noted(tmp_path):
    rng = np.random.default_rng(0)
    replicates = np.where(np.arange(300) % 5 == 0, 8, 1)
    name = np.concatenate([np.repeat([f"g{i:03d}" for i in range(300)], replicates), ["ctl"] * 60])
    x = rng.normal(size=(len(name), 64))
    screen = pd.DataFrame(x, columns=feature_columns(64))
    screen.insert(0, "Metadata_Perturbation", name)
    screen.insert(1, "Metadata_Plate", "P")
    screen.insert(2, "Metadata_control_type", np.where(name == "ctl", "negcon", "trt"))
    screen.to_parquet(tmp_path / "noise.parquet")
    often = [f"g{i:03d}" for i in range(0, 300, 5)]
    known = rng.choice(often, (300, 2))
    pd.DataFrame(known, columns=["entity1", "entity2"]).to_csv(tmp_path / "known.csv", index=False)
    results = run_benchmark(
        [tmp_path / "noise.parquet"], tmp_path / "known.csv", tmp_path / "out", activity=False
    )
    [line] = [line for line in results["notes"]["noise"] if "replicate counts confound recall" in line]
    table = pd.read_csv(tmp_path / "out" / "replicates.csv")
    assert f"recall {table.matched[0]:.3f}, chance 0.100" in line
    assert table.matched[0] > 0.12
    done = CliRunner().invoke(
        app, ["map", str(tmp_path / "noise.parquet"), str(tmp_path / "known.csv"), "--method=none"]
    )
    assert done.exit_code == 0, done.output
    assert "replicate counts confound recall" in " ".join(done.output.split())


def test_bad_options_are_one_sentence(file, tmp_path):
    for option, sentence in [
        ("--null=bootstrap", "--null bootstrap: choose one of auto, permutation"),
        ("--distance=manhattan", "--distance manhattan: choose one of cosine, correlation, euclidean"),
        ("--threshold=2", "threshold 2.0 is not a false-discovery rate"),
        ("--permutations=0", "permutations 0 choose no labels"),
        ("--dose=Metadata_Dose", "compound= and dose= are of the table of mechanisms: give mechanism= too"),
    ]:
        done = CliRunner().invoke(app, ["benchmark", str(file), f"--out={tmp_path}", option])
        assert done.exit_code != 0
        assert sentence in " ".join(f"{done.output} {done.exception}".split())


def test_activity_of_a_map_holds_controls_out(file, tmp_path):
    pairs = tmp_path / "known.csv"
    pairs.write_text("entity1,entity2\nC00,C06\nC01,C07\n")
    done = CliRunner().invoke(
        app,
        [
            "map",
            str(file),
            str(pairs),
            f"--activity={tmp_path / 'active.csv'}",
            "--permutations=200",
            "--seed=4",
        ],
    )
    assert done.exit_code == 0, done.output
    found = pd.read_csv(tmp_path / "active.csv").set_index("perturbation")
    assert "active_by" in done.output
    expected = maps.screen_activity(file, permutations=200, seed=4).set_index("perturbation")
    pd.testing.assert_frame_equal(found, expected, rtol=1e-12)
    meta, x = maps.read_profiles(file)
    control = (meta.Metadata_control_type == "negcon").to_numpy()
    fit, held = maps.split_controls(control, meta.Metadata_Plate, seed=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        z = maps.align(x, "tvn", meta.Metadata_Plate, fit)
    direct = maps.activity(
        z[~fit],
        meta.Metadata_Perturbation[~fit],
        held[~fit],
        meta.Metadata_Plate[~fit],
        permutations=200,
        seed=4,
    ).set_index("perturbation")
    pd.testing.assert_frame_equal(found, direct, rtol=1e-9)


def test_options_reach_retrieval(file):
    meta, x = maps.read_profiles(file)
    control = (meta.Metadata_control_type == "negcon").to_numpy()
    screen = ScreenProfiles(
        x, meta.Metadata_Perturbation.to_numpy(str), meta.Metadata_Plate.to_numpy(str), control
    )
    found = fraction_retrieved(screen, options=RetrievalOptions(distance="euclidean", threshold=0.2))
    hits = maps.retrieval(
        x,
        meta,
        "Metadata_Perturbation",
        [],
        "Metadata_Plate",
        "Metadata_control_type",
        query=~control,
        unit="site",
        distance="euclidean",
        threshold=0.2,
    )
    assert found.set_index("alignment").n_retrieved["as given"] == hits.retrieved.sum()
