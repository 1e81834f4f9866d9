"""Table 4 by condition and kind of perturbation, annotations, gene sets and features at the shell; real plate files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from camae import maps
from camae.cli import app
from camae.embedding_table import feature_columns
from camae.errors import CamaeError, MissingFileError
from camae.reproduction.benchmark.condition_table import modality
from camae.reproduction.benchmark.run_benchmark import run_benchmark

KINDS = {"compound": "A", "crispr": "C", "orf": "O"}


def _screen(seed=0):
    """Plates of two cell types. Of 12 targets, two compounds each look opposite, two guides alike; ORFs have one."""
    rng = np.random.default_rng(seed)
    effect = 3 * rng.normal(size=(12, 16))
    rows, vectors = [], []
    for cell in ("U2OS", "A549"):
        for replicate in range(4):
            plate = f"{cell}-{replicate}"
            treated = [
                (f"{letter}{target:02d}{copy}", kind, target, 1 - 2 * (kind == "compound" and copy == 1))
                for kind, letter in KINDS.items()
                for target in range(12)
                for copy in range(1 if kind == "orf" else 2)
            ]
            for name, kind, target, sign in [*treated, *[("DMSO", "", -1, 0)] * 36]:
                number = len(vectors) % 96
                rows.append(
                    {
                        "Metadata_Plate": plate,
                        "Metadata_Well": f"{'ABCDEFGH'[number // 12]}{number % 12 + 1:02d}",
                        "Metadata_Perturbation": name,
                        "Metadata_control_type": "negcon" if target < 0 else "",
                        "Metadata_kind": kind,
                    }
                )
                vectors.append(sign * effect[target] * (cell == "U2OS" or target < 6) + rng.normal(size=16))
    table = pd.DataFrame(rows)
    return pd.concat([table, pd.DataFrame(np.array(vectors), columns=feature_columns(16))], axis=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conditions")
    table = _screen()
    table.to_parquet(folder / "screen.parquet", index=False)
    names = sorted(set(table.Metadata_Perturbation) - {"DMSO"})
    targets = pd.DataFrame({"Perturbation": names, "target": [f"T{name[1:3]}" for name in names]})
    targets.to_csv(folder / "targets.tsv", sep="\t", index=False)
    plates = sorted(set(table.Metadata_Plate))
    pd.DataFrame({"Plate": plates, "cell": [p.split("-")[0] for p in plates]}).to_csv(
        folder / "plates.csv", index=False
    )
    related = [(f"C{t:02d}0", f"C{t:02d}1") for t in range(12)]
    others = [(f"C{t:02d}0", f"C{(t + 5) % 12:02d}1") for t in range(12)]
    pairs = pd.DataFrame(related + others, columns=["a", "b"])
    pairs.to_csv(folder / "pairs.csv", index=False)
    x = table[feature_columns(16)].to_numpy()
    cells = table[["Metadata_Plate", "Metadata_Well"]].assign(
        Cells_AreaShape_Area=x @ np.arange(16.0),
        Nuclei_Texture_Contrast=np.random.default_rng(1).normal(size=len(x)),
    )
    cells.to_csv(folder / "cells.csv", index=False)
    (folder / "sets").mkdir()
    (folder / "sets" / "first.txt").write_text("\n".join(name for name in names if name < "C060"))
    return folder


@pytest.fixture(scope="module")
def results(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    options = ["--target", "target", "--condition", "cell", "--modality", "kind", "--no-activity"]
    tables = ["--annotations", files / "targets.tsv", "--annotations", files / "plates.csv"]
    more = [
        "--pairs",
        files / "pairs.csv",
        "--cellprofiler",
        files / "cells.csv",
        "--gene-sets",
        files / "sets",
        "--out",
        out,
    ]
    arguments = ["benchmark", files / "screen.parquet", *options, *tables, *more]
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return out, result.output


def test_conditions_are_evaluated_apart_and_averaged(results):
    out, said = results
    table = pd.read_csv(out / "table4.csv")
    assert set(table.condition) == {f"{cell} {kind}" for cell in ("A549", "U2OS") for kind in KINDS}
    found = table[table.alignment == "as given"].set_index(["condition", "task"]).fraction_retrieved
    for kind, groups in (("compound", 24), ("crispr", 24), ("orf", 12)):
        rows = table[(table.condition == f"U2OS {kind}") & (table.task == "perturbations")]
        assert (rows.n_groups == groups).all()
        # In A549 only half of the targets have an effect.
        assert found[f"U2OS {kind}", "perturbations"] > 0.95
        assert 0.4 < found[f"A549 {kind}", "perturbations"] < 0.75
    mean = pd.read_csv(out / "table4_mean.csv").set_index(["task", "alignment"])
    fractions = found.xs("perturbations", level="task")
    row = mean.loc["perturbations", "as given"]
    assert (row.n_conditions, row["mean"]) == (6, pytest.approx(fractions.mean()))
    assert row.sd == pytest.approx(fractions.std(ddof=1))
    assert "mean and spread over conditions" in said
    assert "768 profiles met by Metadata_Plate" in said


def test_a_condition_is_named_once(files, tmp_path):
    with pytest.raises(CamaeError, match="condition names the column 'cell' twice; give each once"):
        run_benchmark([files / "screen.parquet"], None, tmp_path / "out", condition=["cell", "cell"])


def test_siblings_of_compounds_may_be_opposite_guides_are_alike_and_orfs_have_none(results):
    table = pd.read_csv(results[0] / "table4.csv")
    siblings = table[(table.task == "siblings") & (table.alignment == "as given")].set_index("condition")
    assert siblings.n_retrieved["U2OS compound"] > 8
    assert siblings.n_retrieved["U2OS crispr"] > 8
    assert not any("orf" in name for name in siblings.index)
    signed = run_benchmark(
        [_compounds_alone(results[0])],
        None,
        results[0] / "signed",
        target="Metadata_target",
        modality="crispr",
        activity=False,
    )
    # Compounds of one target look opposite here: without the absolute value none is found.
    rows = [r for r in signed["table4"] if (r["task"], r["alignment"]) == ("siblings", "as given")]
    assert rows[0]["n_retrieved"] == 0


def _compounds_alone(folder):
    table = _screen()
    kept = (table.Metadata_kind == "compound") | (table.Metadata_control_type == "negcon")
    table = table[kept & table.Metadata_Plate.str.startswith("U2OS")]
    table.insert(0, "Metadata_target", "T" + table.Metadata_Perturbation.str[1:3])
    path = folder / "compounds.parquet"
    table.to_parquet(path, index=False)
    return path


def test_gene_sets_and_figures_are_printed_at_the_console(results, files):
    out, said = results
    table = pd.read_csv(out / "table5.csv").set_index("gene_set")
    assert list(table.index) == ["all perturbations", "first"]
    wells = maps.map_screen(files / "screen.parquet", "tvn")
    pairs = maps.read_pairs(files / "pairs.csv")
    expected = maps.recall_at_fpr(wells.vectors, wells.names, pairs, 0.05)["recall"]
    assert table.recall["all perturbations"] == pytest.approx(expected)
    recall = pd.read_csv(out / "table3.csv").recall[0]
    for words in (
        "Recall by alignment (Table 2)",
        "TVN, shrunk",
        "Fraction retrieved (Table 4)",
        f"{recall:.3f}",
    ):
        assert words in said
    told = pd.read_csv(out / "figure6.csv").set_index("category").median_r2
    assert told["AreaShape"] > 0.99  # a sum of the features
    assert told["Texture"] < 0.1  # noise
    page = (out / "benchmark.html").read_text()
    for words in (
        "mean and spread over conditions",
        "Recall at 5 % false positives in gene sets (Table 5)",
        "A549 orf",
        "median R²",
        f"{recall:.3f} [",
    ):
        assert words in page


@pytest.mark.parametrize("method", ["tvn_shrunk", "replicate_whitening"])
def test_map_and_benchmark_recall_the_same_by_the_methods_for_few_controls(files, tmp_path, method):
    mapped = maps.map_screen(files / "screen.parquet", method, shrinkage=0.3)
    expected = maps.recall(
        mapped.vectors, mapped.names, maps.read_pairs(files / "pairs.csv"), interval=True
    ).iloc[0]
    result = run_benchmark(
        [files / "screen.parquet"],
        files / "pairs.csv",
        tmp_path,
        method=method,
        shrinkage=0.3,
        activity=False,
    )
    row = result["table3"][0]
    label = {"tvn_shrunk": "TVN, shrunk", "replicate_whitening": "Replicate whitening"}[method]
    assert (row["step"], row["recall"], row["low"]) == (label, expected.recall, expected.low)
    assert row["recall"] == next(r["recall"] for r in result["table2"] if r["alignment"] == label)
    arguments = [
        "map",
        files / "screen.parquet",
        files / "pairs.csv",
        "--method",
        method,
        "--shrinkage",
        "0.3",
    ]
    said = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"}).output
    assert f"{expected.low:.6f}" in said


def test_bad_input_is_one_sentence(files, tmp_path):
    (tmp_path / "other.csv").write_text("compound,target\nx,y\n")
    (tmp_path / "twice.csv").write_text("Plate,cell\nU2OS-0,a\nU2OS-0,b\n")
    (tmp_path / "nobody.csv").write_text("Plate,cell\nnobody,a\n")
    (tmp_path / "some.csv").write_text("Plate,cell\nU2OS-0,a\n")
    screen = [files / "screen.parquet"]
    for options, message in [
        ({"annotations": [tmp_path / "other.csv"]}, "none of its columns is a column of them"),
        (
            {"annotations": [tmp_path / "twice.csv"]},
            "Plate stand more than once in it; it needs a column of distinct",
        ),
        ({"annotations": [tmp_path / "nobody.csv"]}, "no Plate of it is in Metadata_Plate of the profiles"),
        ({"annotations": [tmp_path / "none.csv"]}, "no such file"),
        ({"condition": ["cell"]}, "the profiles have no column cell for the condition"),
        (
            {"annotations": [tmp_path / "some.csv"], "condition": ["cell"]},
            "the condition is empty in row .*; every treated well needs one",
        ),
        ({"condition": ["Metadata_kind"]}, "has no negative controls among its"),
        ({"modality": "Metadata_Plate"}, "is not known; write compound, crispr or orf"),
        ({"method": "combat"}, "unknown alignment 'combat'"),
        ({"shrinkage": 2.0}, "shrinkage must be 'ledoit_wolf' or a number above 0"),
        ({"features": "some"}, "features 'some' are not known; choose known or all"),
        ({"gene_sets": tmp_path / "absent"}, "no such folder of gene sets"),
    ]:
        with pytest.raises((CamaeError, MissingFileError), match=message):
            run_benchmark(screen, None, tmp_path / "out", activity=False, **options)
    assert modality(" CRISPR ") == "crispr"
    said = CliRunner().invoke(app, ["map", "a", "b", "--shrinkage", "strong"])
    assert "--shrinkage strong: give 'ledoit_wolf' or a number" in str(said.exception)
    said = CliRunner().invoke(app, ["benchmark", "a", "--out", "b", "--features", "some"])
    assert "--features some: choose 'known' or 'all'" in str(said.exception)


@pytest.fixture(scope="module")
def tables(real_data):
    if not (real_data / "profiles").is_dir():
        pytest.skip(f"no real tables at {real_data}")
    return Path(real_data)


def _run(*arguments):
    result = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.output


def test_cpjump1_by_one_command_on_the_plate_files(tables, tmp_path):
    """U2OS, 48 hours, compounds: published 203 of 306 and siblings .13 +- .07 over 8 conditions."""
    plates = sorted((tables / "profiles" / "cpjump1_cellprofiler").glob("BR0011701*.csv.gz"))
    annotations = "metadata/jump_target/JUMP-Target-1_compound_metadata_additional_annotations.tsv"
    said = _run(
        *(
            "benchmark",
            *plates,
            "--perturbation",
            "Metadata_broad_sample",
            "--no-activity",
            "--out",
            tmp_path,
        ),
        *("--annotations", tables / annotations, "--target", "target_list"),
    )
    table = pd.read_csv(tmp_path / "table4.csv").set_index(["task", "alignment"])
    found = table.loc["perturbations", "as given"]
    assert found.n_groups == 306
    assert abs(found.n_retrieved - 203) <= 1
    assert f" {found.fraction_retrieved:.3f}" in said
    assert table.loc[("siblings", "as given")].n_groups > 200


def test_bbbc021_by_one_command(tables, tmp_path):
    """TVN with all components: .864; without alignment .495 (both known of this table)."""
    _run(
        *("benchmark", tables / "profiles" / "bbbc021_ljosa_per_well_mean.parquet", "--out", tmp_path),
        *(
            "--perturbation",
            "Metadata_Compound",
            "--plate",
            "Metadata_Batch",
            "--dose",
            "Metadata_Concentration",
        ),
        *("--mechanism", "Metadata_MoA", "--components", "all", "--features", "all", "--no-activity"),
    )
    table = pd.read_csv(tmp_path / "mechanisms.csv")
    accuracy = table[table.neighbor == "not same compound"].set_index("alignment").accuracy
    assert accuracy["TVN"] == pytest.approx(0.864, abs=0.001)
    assert accuracy["No transformation"] == pytest.approx(0.495, abs=0.001)
