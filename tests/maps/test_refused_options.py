"""Numbers, options and labels that cannot be, refused in one sentence by every function that takes them."""

import numpy as np
import pandas as pd
import pytest
from explored_screen import wells_table
from typer.testing import CliRunner

from camae import maps
from camae.cli.application import app
from camae.errors import CamaeError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5))
NAMES = [f"g{i:02d}" for i in range(40)]
PAIRS = [(f"g{i:02d}", f"g{i + 1:02d}") for i in range(0, 20, 2)]
CONTROL = np.arange(40) < 20
PLATE = np.where(np.arange(40) % 2, "a", "b")
BY = np.where(CONTROL, "ctl", [f"p{i // 4}" for i in range(40)])
META = pd.DataFrame({"name": BY, "plate": PLATE, "control": CONTROL})
GENES = dict.fromkeys(NAMES, "1p") | dict.fromkeys(NAMES[:20], "2q")
RULES = {"pos_sameby": "name", "pos_diffby": [], "neg_sameby": "plate", "neg_diffby": "control"}


def refused(call, sentence):
    with pytest.raises(CamaeError, match=sentence):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda b: maps.Center().fit(X, batch=b, control=CONTROL),
        lambda b: maps.Center().fit_transform(X, batch=b),
        lambda b: maps.Center().fit(X, batch=PLATE).transform(X, batch=b),
        lambda b: maps.PCA().fit(X).transform(X, batch=b),
        lambda b: maps.align(X, "standardize", b, CONTROL),
        lambda b: maps.align(X, "none", b),
        lambda b: maps.split_controls(CONTROL, b),
        lambda b: maps.activity(X, BY, CONTROL, b),
        lambda b: maps.calibration(X, CONTROL, b),
    ],
)
def test_a_batch_without_a_name_is_refused(call):
    batch = PLATE.astype(object)
    batch[[3, 5]] = ""
    refused(lambda: call(batch), r"batch is empty in 2 of 40 rows \(first: row 3\); name the batch of these")
    batch[3] = None
    refused(lambda: call(batch), "batch is missing in row 3")


@pytest.mark.parametrize("seed", [-1, 1.5, "one", True])
@pytest.mark.parametrize(
    "call",
    [
        lambda seed: maps.split_controls(CONTROL, PLATE, seed=seed),
        lambda seed: maps.activity(X, BY, CONTROL, seed=seed),
        lambda seed: maps.screen_activity(wells_table(), seed=seed),
        lambda seed: maps.screen_activity(wells_table(), "none", seed=seed),
        lambda seed: maps.calibration(X, CONTROL, seed=seed),
        lambda seed: maps.matched_recall(X, NAMES, [1] * 40, PAIRS, seed=seed),
        lambda seed: maps.magnitude(X, BY, CONTROL, seed=seed),
        lambda seed: maps.retrieval(X, META, **RULES, unit="site", seed=seed),
    ],
)
def test_a_seed_is_a_whole_number(call, seed):
    refused(lambda: call(seed), "is not a whole number from 0 on")


@pytest.mark.parametrize("permutations", [0, -1, 1.5, "ten"])
def test_permutations_are_counted(permutations):
    for call in (
        lambda: maps.activity(X, BY, CONTROL, permutations=permutations),
        lambda: maps.calibration(X, CONTROL, permutations=permutations),
        lambda: maps.screen_activity(wells_table(), permutations=permutations),
    ):
        refused(call, "choose no labels; give 1 or more, whole")
    refused(
        lambda: maps.calibration(X, CONTROL, replicates=1.5), "replicates is 1.5, which is not an integer"
    )
    refused(lambda: maps.calibration(X, CONTROL, null_size=0), "null_size 0 draws no ranking")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: maps.linear_probe(X, BY, None, ridge=-1),
            "ridge is -1, which is not a finite number, above 0",
        ),
        (lambda: maps.linear_probe(X, BY, None, ridge=np.nan), "ridge is nan, which is not a finite number"),
        (lambda: maps.linear_probe(X, BY, None, penalty=-1), "penalty is -1, which is not a finite"),
        (lambda: maps.linear_probe(X, BY, None, penalty=np.float32("nan")), "penalty is nan, which is not"),
        (lambda: maps.feature_regression(X, X, X, X, NAMES[:5], ridge=np.nan), "ridge is nan, which is not"),
        (lambda: maps.feature_regression(X, X, X, X, NAMES[:5], ridge=-1), "ridge is -1, which is not"),
        (lambda: maps.strongest(X, NAMES, count=-1), "count is -1, which is not an integer, at least 0"),
        (lambda: maps.strongest(X, NAMES, block=-1), "block is -1, which is not an integer, at least 1"),
        (lambda: maps.strongest(X, NAMES, block=0), "block is 0, which is not an integer, at least 1"),
        (lambda: maps.arm_bias(X, NAMES, GENES, block=-1), "block is -1, which is not an integer"),
        (lambda: maps.arm_bias(X, NAMES, GENES, block=0), "block is 0, which is not an integer"),
        (
            lambda: maps.split_controls(CONTROL, held_out=-1),
            "held_out is -1, which is not a finite number, at",
        ),
        (lambda: maps.split_controls(CONTROL, held_out=5), "held_out is 5, .* at least 0 and at most 1"),
        (lambda: maps.split_controls(CONTROL, held_out=np.nan), "held_out is nan, which is not"),
        (
            lambda: maps.magnitude(X, BY, CONTROL, max_controls=-1),
            "max_controls is -1, which is not an integ",
        ),
        (lambda: maps.perturbation_names(BY, 0.5), "min_replicates is 0.5, which is not an integer"),
        (lambda: maps.activity(X, BY, CONTROL, max_controls=1.5), "max_controls 1.5 and max_replicates 64"),
        (
            lambda: maps.activity(X, BY, CONTROL, threshold="low"),
            "threshold low is not a false-discovery rate",
        ),
        (lambda: maps.recall(X, NAMES, PAIRS, bootstrap=0.5), "bootstrap is 0.5; leave it out, or give"),
        (lambda: maps.recall_at_fpr(X, NAMES, PAIRS, fpr="low"), "fpr must lie between 0 and 1, got low"),
    ],
)
def test_numbers_that_cannot_be(call, sentence):
    refused(call, sentence)


@pytest.mark.parametrize("given", [-1, 1.5, np.nan])
def test_replicates_are_counts(given):
    counts = np.full(40, 2.0)
    counts[7] = given
    refused(
        lambda: maps.matched_recall(X, NAMES, counts, PAIRS),
        "replicates counts the rows of each perturbation",
    )
    refused(lambda: maps.matched_recall(X, NAMES, ["two"] * 40, PAIRS), "give whole numbers from 0 on")
    refused(lambda: maps.matched_recall(X, NAMES, [1] * 40, PAIRS, draws=2.5), "draws 2.5 give no standard")


@pytest.mark.parametrize("origin", [np.nan, [0.0] * 4, [np.inf] * 5, "zero", ["a"] * 5, np.zeros((2, 5))])
def test_an_origin_is_one_row(origin):
    sentence = "origin must hold 5 finite numbers, one for each feature of the embeddings"
    refused(lambda: maps.aggregate(X, BY, origin=origin), sentence)
    refused(lambda: maps.relate(X, origin=origin), sentence)
    np.testing.assert_allclose(maps.relate(X, [0.0] * 5), maps.relate(X))


@pytest.mark.parametrize(
    "call",
    [
        lambda v, names: maps.recall(v, names, PAIRS),
        lambda v, names: maps.recall_curve(v, names, PAIRS),
        lambda v, names: maps.recall_at_fpr(v, names, PAIRS),
        lambda v, names: maps.pooled_recall([v], names, PAIRS),
        lambda v, names: maps.recall_difference([v], [v], names, PAIRS),
        lambda v, names: maps.matched_recall(v, names, [1] * len(names), PAIRS),
        lambda v, names: maps.strongest(v, names),
    ],
)
def test_a_map_has_one_name_for_each_row_and_may_be_a_list(call):
    for names in (NAMES[:30], [*NAMES, "g40"]):
        refused(lambda names=names: call(X, names), "needs one label for each of the 40 rows")
    assert str(call(X.tolist(), NAMES)) == str(call(X, NAMES))


def test_maps_of_several_seeds():
    sentence = r"names of map 1 of seeds needs one label for each of the 10 rows, got shape \(40,\)"
    refused(lambda: maps.pooled_recall([X, X[:10]], NAMES, PAIRS), sentence)
    refused(
        lambda: maps.recall_difference([X], [X, X[:10]], NAMES, PAIRS), "names of map 1 of baseline needs"
    )
    refused(
        lambda: maps.pooled_recall([], NAMES, PAIRS), "seeds holds no map; give one .* for each random seed"
    )
    refused(lambda: maps.recall_difference([X], [], NAMES, PAIRS), "baseline holds no map; give one")
    pooled, paired = (
        maps.pooled_recall([X, -(X**3)], NAMES, PAIRS),
        maps.recall_difference([X, -(X**3)], [X], NAMES, PAIRS)["trained"],
    )
    assert pooled == pytest.approx(paired, rel=1e-12)


def test_tails_and_percentiles_are_sequences():
    for tails in (0.05, None, "05"):
        refused(
            lambda tails=tails: maps.recall(X, NAMES, PAIRS, tails=tails), "tails must be two numbers or None"
        )
    for shares in (0.1, [0.1, 1.5], [np.nan], "ab"):
        refused(
            lambda shares=shares: maps.recall_curve(X, NAMES, PAIRS, percentiles=shares),
            "percentiles must be a sequence of shares above 0 and below 1, got",
        )


def test_alignment_none_takes_what_others_take():
    for call, sentence in (
        (lambda: maps.align(X, "none", bogus=1), "alignment 'none' has no such option: bogus; it takes none"),
        (
            lambda: maps.align(X, "none", components=3),
            "components is one of pca, pca_standardize, tvn, tvn_ando",
        ),
        (lambda: maps.align(X, "none", PLATE[:3]), "batch needs one label for each of the 40 rows"),
        (lambda: maps.align(X, "none", PLATE, "zz"), "control needs one boolean for each of the 40 rows"),
        (
            lambda: maps.align(X, "none", perturbation=["a"]),
            "perturbation needs one label for each of the 40",
        ),
        (lambda: maps.align(X, None), "unknown alignment None; choose one of none, center"),
        (lambda: maps.align(X, maps.TVN), "unknown alignment <class"),
        (lambda: maps.map_screen(wells_table(), "none", eps=0.5), "alignment 'none' has no such option: eps"),
        (lambda: maps.map_screen(wells_table(), None), "unknown alignment None"),
        (lambda: maps.screen_activity(wells_table(), "none", eps=0.5), "'none' has no such option: eps"),
        (
            lambda: maps.map_screen(wells_table(), "tvn", shrinkage=0.3),
            "'tvn' has no such option: shrinkage; it takes eps, rtol, components, and shrinkage is one of tvn_shrunk, "
            "replicate_whitening",
        ),
    ):
        refused(call, sentence)


def test_components_of_alignments_without_any():
    for call in (maps.map_screen, maps.screen_activity):
        for method in ("center", "none", "tvn_shrunk"):
            refused(
                lambda call=call, method=method: call(wells_table(), method, components=3),
                f"components=3 would change nothing: the alignment '{method}' keeps no principal components",
            )
        for components in (0, 1.5, "some", True):
            refused(
                lambda call=call, components=components: call(wells_table(), components=components),
                "give 'half_controls', None .* or a whole number of at least 1",
            )
    assert maps.map_screen(wells_table(), "center", components=None).vectors.shape[1] == 16
    spelled = maps.map_screen(wells_table(), "TVN")
    assert spelled.options == maps.map_screen(wells_table()).options == {"components": 12}


def test_a_multilabel_column_is_one_that_labels_are_read_from():
    for call in (maps.retrieval, maps.average_precision):
        refused(
            lambda call=call: call(X, META, **RULES, multilabel="zz"),
            "multilabel names the column 'zz', which the metadata lacks",
        )
        refused(
            lambda call=call: call(X, META, **RULES, multilabel="plate"),
            "the multilabel column 'plate' stands neither in pos_sameby nor in neg_diffby",
        )
        refused(
            lambda call=call: call(X, META.to_dict("list"), **RULES),
            "the metadata is a dict; give a DataFrame",
        )
    refused(
        lambda: maps.consistency(X, BY, meta="meta.csv"), "the metadata is a str; give a DataFrame, one row"
    )


def test_tables_that_are_not_the_result_of_a_function():
    empty = pd.DataFrame()
    for call, of in (
        (lambda t: maps.average_precision_p_values(t), "average_precision: it lacks the column n_pos_pairs"),
        (
            lambda t: maps.mean_average_precision(t, "name"),
            "average_precision: it lacks the column n_pos_pairs",
        ),
        (lambda t: maps.activity_agreement(t), "activity: it lacks the column perturbation"),
        (lambda t: maps.calibration_summary(t), "calibration: it lacks the column test"),
        (lambda t: maps.replicate_warnings(t), "matched_recall: it lacks the column recall"),
    ):
        refused(
            lambda call=call: call(empty),
            f"the table is not the result of maps.{of}; give that result as it is",
        )
        refused(lambda call=call: call(None), "the table is not the result of .*: it is a NoneType")
    ap = maps.average_precision(X, META, **RULES, unit="site")
    refused(lambda: maps.average_precision_p_values(ap.iloc[:0]), "average_precision: it has no rows")
    refused(
        lambda: maps.mean_average_precision(ap, []), "sameby names no column; name those whose values make"
    )


def test_inputs_without_what_is_needed():
    refused(
        lambda: maps.magnitude(X, BY, np.ones(40, bool)),
        "every row is a negative control; magnitude needs rows of perturbations beside them",
    )
    refused(lambda: maps.perturbation_names([]), "by is empty, so there are no perturbations to name")
    refused(lambda: maps.perturbation_names(None), r"by needs one label for each row, got shape \(\)")
    refused(lambda: maps.recall_at_fpr(X, NAMES, PAIRS, genes=3), r"genes is 3; give a list of names")
    refused(
        lambda: maps.feature_regression(X, X, X, X, None), "names needs one label for each row, got shape"
    )
    refused(lambda: maps.split_controls(None), "control needs one boolean for each of the 1 rows")
    refused(lambda: maps.split_controls(CONTROL[19:]), "the table has 1 controls; at least 2 are needed to")
    zfpkm = dict.fromkeys(NAMES, -5.0) | {"g03": "-4"}
    refused(
        lambda: maps.correct_arms(X, NAMES, GENES, zfpkm, more_than=2),
        r"zfpkm of g03 is '-4', which is no number \(1 such rows of the map in all\)",
    )
    refused(
        lambda: maps.correct_arms(X, NAMES, GENES, zfpkm, unexpressed="low"),
        "unexpressed is low, which is not",
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--seed=-1"], "seed -1 is not a whole number from 0 on"),
        (["--threshold=2"], "threshold 2.0 is not a false-discovery rate"),
        (["--permutations=5"], "--permutations is an option of activity, which is not computed here"),
        (["--threshold=0.1"], "give --activity a file as well, or leave --threshold out"),
        (["--distance=euclidean"], "give --activity a file as well, or leave --distance out"),
        (["--method=center", "--components=3"], "the alignment 'center' keeps no principal components"),
        (["--shrinkage=0.3"], "shrinkage is one of tvn_shrunk, replicate_whitening"),
        (["--method=center", "--activity=active.csv", "--permutations=20"], None),
    ],
)
def test_options_of_the_shell(tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    wells_table().to_csv("wells.csv", index=False)
    pd.DataFrame({"a": ["gene00"], "b": ["gene01"]}).to_csv("pairs.csv", index=False)
    done = CliRunner().invoke(app, ["map", "wells.csv", "pairs.csv", *options])
    assert (done.exit_code == 0) == (sentence is None), done.output
    if sentence is not None:
        assert isinstance(done.exception, CamaeError | SystemExit)
        assert sentence in (str(done.exception) + " ".join(done.output.split()))


def test_forms_of_numbers_names_and_origins_that_are_taken():
    """NumPy's numbers, sets of names, an origin as a row, seeds of 64 bits."""
    assert maps.recall_at_fpr(X, NAMES, PAIRS, genes=set(NAMES)) == maps.recall_at_fpr(
        X, NAMES, PAIRS, genes=NAMES
    )
    origin = np.arange(5.0)
    for other in (origin[None], list(origin)):
        np.testing.assert_array_equal(maps.relate(X, origin=other), maps.relate(X, origin=origin))
    np.testing.assert_array_equal(maps.relate(X, origin=0.0), maps.relate(X, origin=np.zeros(5)))
    control = np.arange(len(X)) % 2 == 0
    for value in (np.float32(0.5), np.float64(0.5)):
        got = maps.align(X, "tvn", control=control, eps=value)
        np.testing.assert_allclose(got, maps.align(X, "tvn", control=control, eps=0.5))
    for seed in (2**32, 2**63):
        assert maps.split_controls(control, seed=seed)[0].sum() > 0
        assert len(maps.calibration(X, CONTROL, seed=seed, permutations=10))
