"""Screens: replicates are wells, almost-constant columns, one recall for map and benchmark, pairs from folders."""

import gzip
import json
import warnings

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from camae import maps
from camae.cli import app
from camae.embedding_table import by_well, make_table
from camae.errors import CamaeError
from camae.omissions import Omissions
from camae.reproduction.benchmark.run_benchmark import run_benchmark

METHODS = tuple(method for method in maps.METHODS if method != "none")


def screen(plates=4, genes=12, controls=12, width=8, seed=0, sites=1, well_noise=0.3, site_noise=0.0):
    """Genes come in related pairs; each stands once on each plate, in its own well."""
    rng = np.random.default_rng(seed)
    effect = np.repeat(rng.normal(size=(genes // 2, width)), 2, axis=0)
    rows, vectors = [], []
    for plate in range(plates):
        shift = rng.normal(size=width)
        for k in range(genes + controls):
            well = (effect[k] if k < genes else 0) + shift + well_noise * rng.normal(size=width)
            for site in range(sites):
                rows.append(
                    {
                        "Metadata_Plate": f"P{plate}",
                        "Metadata_Well": f"{'ABCDEFGH'[k // 12]}{k % 12 + 1}",
                        "Metadata_Site": str(site + 1),
                        "Metadata_Perturbation": f"G{k:02d}" if k < genes else "DMSO",
                        "Metadata_control_type": "" if k < genes else "negcon",
                    }
                )
                vectors.append(well + site_noise * rng.normal(size=width))
    return make_table(pd.DataFrame(rows), np.array(vectors))


PAIRS = [(f"G{k:02d}", f"G{k + 1:02d}") for k in range(0, 12, 2)]


@pytest.mark.parametrize("factor", [1e-7, 1e-9, 1e-12, 0.0])
@pytest.mark.parametrize("method", METHODS)
def test_fault_11_an_almost_constant_control_column_is_not_blown_up(method, factor):
    table = screen()
    x = np.array(table.filter(regex="^emb_"), np.float64)  # a copy, also where pandas copies on write
    control = (table.Metadata_control_type == "negcon").to_numpy()
    plain = maps.map_profiles(x, table.Metadata_Perturbation, table.Metadata_Plate, control, method)
    x[control, 3] *= factor
    for dtype in (np.float64, np.float32):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            z = maps.align(
                *(x.astype(dtype), method, table.Metadata_Plate, control),
                perturbation=table.Metadata_Perturbation,
            )
            found = maps.map_profiles(
                x.astype(dtype), table.Metadata_Perturbation, table.Metadata_Plate, control, method
            )
        assert np.abs(z).max() < 100
        said = [str(w.message) for w in caught if "by no more than rounding" in str(w.message)]
        if method in ("standardize", "tvn", "tvn_ando", "tvn_shrunk", "robustize_mad"):
            assert len(said) == 2  # one of each of the two calls
            assert "1 of 8 columns (3, counted from 0)" in said[0]
        assert maps.recall(found.vectors, found.names, PAIRS)["recall"].iloc[0] >= (
            maps.recall(plain.vectors, plain.names, PAIRS)["recall"].iloc[0] - 0.35
        )


def test_fault_11_recall_survives_an_almost_constant_column():
    table = screen(well_noise=0.05)
    table.loc[table.Metadata_control_type == "negcon", "emb_0002"] *= 1e-9
    for method in ("standardize", "tvn"):
        with pytest.warns(
            UserWarning, match=r"1 of 8 columns \(2, counted from 0\) vary by no more than rounding"
        ):
            result = maps.map_screen(table, method)
        assert maps.recall(result.vectors, result.names, PAIRS, (None, 0.9))["recall"].iloc[0] == 1


def test_fault_11_small_columns_are_scaled_as_large_ones_are():
    """The floor is relative: a column of 1e-9 everywhere is no constant column."""
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1, 1e-9, 1e9]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(maps.align(x, "standardize").std(axis=0), 1)


def test_fault_11_streamed_controls_know_the_scale_of_the_table(tmp_path):
    table = screen()
    table.loc[table.Metadata_control_type == "negcon", "emb_0003"] *= 1e-12
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match=r"1 of 8 columns \(3, counted from 0\)"):
        maps.align_parquet([tmp_path / "t.parquet"], tmp_path / "z.parquet", maps.Standardize())
    assert pd.read_parquet(tmp_path / "z.parquet").filter(regex="^emb").abs().to_numpy().max() < 100


def test_fault_16_transforms_give_finite_numbers_or_refuse(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    x[:, 1] *= 1e-28
    aligner = maps.Standardize().fit(x[:10])
    far = np.where(np.arange(3) == 1, np.float32(1e15), x[10:])
    with pytest.raises(CamaeError, match=r"standardize gives a value that is not finite in row 0, column 1"):
        aligner.transform(far)
    with pytest.raises(CamaeError, match="not finite"):
        maps.align(np.full((4, 2), np.nan), "standardize")
    for method, options in (
        ("tvn", {"eps": float("nan")}),
        ("tvn", {"eps": -1}),
        ("pca", {"rtol": 2}),
        ("pca", {"components": 0}),
        ("pca", {"components": 2.5}),
        ("spherize", {"eps": "x"}),
    ):
        with pytest.raises(CamaeError, match=r"must be a (whole )?number"):
            maps.align(x, method, control=np.ones(20, bool), **options)
    aligner.maps_[""].offset[0] = np.nan
    maps.save_aligner(aligner, tmp_path)
    with pytest.raises(CamaeError, match="values that are not finite"):
        maps.load_aligner(tmp_path)


@pytest.mark.parametrize("size", [1e-30, 1e-38])
def test_fault_16_directions_of_tiny_rows_are_kept(size):
    x = np.random.default_rng(0).normal(size=(6, 4))
    np.testing.assert_allclose(maps.relate((x * size).astype(np.float32)), maps.relate(x), atol=1e-4)
    assert maps.relate(np.zeros((2, 3), np.float32)).tolist() == [[0, 0], [0, 0]]


def test_fault_12_sites_of_one_well_are_no_replicates():
    """Noise alone: sites of a well agree, wells of a perturbation do not."""
    table = screen(plates=1, genes=24, sites=3, well_noise=1, site_noise=0.1)
    table["Metadata_Perturbation"] = table["Metadata_Perturbation"].where(
        table.Metadata_control_type == "negcon", [f"N{k:02d}" for k in np.arange(len(table)) // 3]
    )
    x = table.filter(regex="^emb_").to_numpy()
    control = table.Metadata_control_type == "negcon"
    rules = {
        "pos_sameby": "Metadata_Perturbation",
        "pos_diffby": [],
        "neg_sameby": "Metadata_Plate",
        "neg_diffby": "Metadata_control_type",
        "query": ~control,
        "null_size": 500,
    }
    sentence = (
        r"rows 0 and 1 are of one well \(plate P0, well A1\), and 108 rows of 36 wells in all: sites of one"
    )
    with pytest.raises(CamaeError, match=sentence):
        maps.retrieval(x, table, **rules)
    with pytest.raises(CamaeError, match=sentence):
        maps.consistency(x, table.Metadata_Perturbation, meta=table)
    assert maps.retrieval(x, table, **rules, unit="site").retrieved.mean() > 0.9
    with pytest.raises(CamaeError, match="needs at least two replicates"):
        maps.retrieval(x, table[[*table]], **rules, unit="well")
    assert maps.consistency(x, table.Metadata_Perturbation, meta=table, unit="well").n_replicates.max() == 12
    with pytest.raises(CamaeError, match="unknown unit"):
        maps.retrieval(x, table, **rules, unit="plate")


def test_fault_12_retrieval_by_well_equals_the_table_of_wells():
    table = screen(sites=2, site_noise=0.2)
    wells = by_well(table)
    rules = ("Metadata_Perturbation", [], "Metadata_Plate", "Metadata_control_type", 300)

    def hits(t, **options):
        query = (t.Metadata_control_type != "negcon").to_numpy()
        return maps.retrieval(t.filter(regex="^emb_").to_numpy(), t, *rules, query=query, **options)

    pd.testing.assert_frame_equal(hits(table, unit="well"), hits(wells), rtol=1e-5)
    spelled = table.assign(
        Metadata_Well=table.Metadata_Well.str.lower().where(table.Metadata_Site == "1", table.Metadata_Well)
    )
    pd.testing.assert_frame_equal(hits(spelled, unit="well"), hits(wells), rtol=1e-5)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pairs.csv").write_text("".join(f"{a},{b}\n" for a, b in [("gene1", "gene2"), *PAIRS]))
    return tmp_path


def test_fault_12_benchmark_averages_sites_to_wells(folder):
    table = screen(sites=3, site_noise=0.2)
    table.to_parquet(folder / "sites.parquet")
    by_well(table).to_parquet(folder / "wells.parquet")
    options = {"null_size": 300}
    of_sites = run_benchmark({"m": folder / "sites.parquet"}, folder / "pairs.csv", folder / "a", **options)
    of_wells = run_benchmark({"m": folder / "wells.parquet"}, folder / "pairs.csv", folder / "b", **options)
    assert (
        "288 sites were averaged to 96 wells: sites of one well are no replicates" in of_sites["notes"]["m"]
    )
    for name in ("table2", "table4"):
        a, b = pd.DataFrame(of_sites[name]), pd.DataFrame(of_wells[name])
        pd.testing.assert_frame_equal(a, b, rtol=1e-4)
    kept = run_benchmark({"m": folder / "sites.parquet"}, None, folder / "c", unit="site", **options)
    assert pd.DataFrame(kept["table4"]).mean_ap[0] > pd.DataFrame(of_wells["table4"]).mean_ap[0]
    assert not any("averaged" in line for line in kept["notes"]["m"])
    with pytest.raises(CamaeError, match="its 288 rows are sites"):
        run_benchmark({"m": folder / "sites.parquet"}, None, folder / "d", unit=None, **options)


def test_fault_24_anndata_with_categorical_columns_works_in_benchmark(folder):
    anndata = pytest.importorskip("anndata")
    table = screen()
    obs = table.filter(regex="^Metadata_").replace("", None).astype("category")
    x = table.filter(regex="^emb_")
    data = anndata.AnnData(
        x.to_numpy(), obs=obs.set_axis(obs.index.astype(str)), var=pd.DataFrame(index=x.columns)
    )
    data.write_h5ad(folder / "wells.h5ad")
    table.to_parquet(folder / "wells.parquet")
    options = {"null_size": 300}
    results = [
        run_benchmark([folder / f"wells.{ending}"], folder / "pairs.csv", folder / ending, **options)
        for ending in ("h5ad", "parquet")
    ]
    assert results[0]["table2"] == results[1]["table2"]
    assert results[0]["table4"] == results[1]["table4"]
    assert (
        maps.map_screen(folder / "wells.h5ad").vectors == maps.map_screen(folder / "wells.parquet").vectors
    ).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("width", [8, 40])  # fewer features than controls, and about as many as controls
def test_fault_32_map_and_benchmark_give_the_same_recall(folder, width):
    known = maps.read_pairs_folder(folder / "pairs.csv")
    methods = {
        "No transformation": "none",
        "PCA": "pca",
        "TVN": "tvn",
        "TVN, shrunk": "tvn_shrunk",
        "Replicate whitening": "replicate_whitening",
        "Center by plate": "center",
        "Standardize by plate": "standardize",
        "PCA+Standardize by plate": "pca_standardize",
    }
    screen(width=width).to_parquet(wells := folder / "wells.parquet")
    for row in run_benchmark([wells], folder / "pairs.csv", folder / "out", null_size=99)["table2"]:
        mapped = maps.map_screen(wells, methods[row["alignment"]])
        assert maps.recall(mapped.vectors, mapped.names, known)["recall"].iloc[0] == row["recall"]


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "parquet"])
def test_fault_32_map_takes_any_table_several_plates_and_other_columns(folder, ending):
    table = screen()
    expected = maps.map_screen(table)
    odd = table.rename(
        columns={
            "Metadata_Perturbation": "gene",
            "Metadata_Plate": "Metadata_Barcode",
            "Metadata_control_type": "role",
        }
    ).replace({"role": {"negcon": "neg"}})
    files = []
    for plate, part in odd.groupby("Metadata_Barcode"):
        files.append(folder / f"{plate}.{ending}")
        if ending == "parquet":
            part.to_parquet(files[-1])
        else:
            part.to_csv(files[-1], index=False, sep="\t" if ending == "tsv" else ",")
    names = {"perturbation": "gene", "plate": "Barcode", "control": "role", "negative": "neg"}
    mapped = maps.map_screen(files, **names)
    assert mapped.names.tolist() == expected.names.tolist()
    np.testing.assert_allclose(mapped.vectors, expected.vectors, atol=1e-6)
    options = [f"--{key}={value}" for key, value in names.items()]
    done = CliRunner().invoke(
        app, ["map", *map(str, files), str(folder / "pairs.csv"), *options, f"--out={folder / 'strong.csv'}"]
    )
    assert done.exit_code == 0, done.output
    assert len(pd.read_csv(folder / "strong.csv")) == 66


def test_fault_32_plate_files_are_one_screen_and_tables_of_the_same_plates_are_models(folder):
    table = screen()
    for plate, part in table.groupby("Metadata_Plate"):
        part.to_csv(folder / f"screen_{plate}.csv", index=False)
    table.to_parquet(folder / "all.parquet")
    files = [folder / f"screen_P{k}.csv" for k in range(4)]
    options = {"null_size": 99}
    one = run_benchmark(files, folder / "pairs.csv", folder / "a", **options)
    assert list(one["notes"]) == ["screen_P"]
    whole = run_benchmark({"screen_P": folder / "all.parquet"}, folder / "pairs.csv", folder / "b", **options)
    assert one["table2"] == whole["table2"]
    named = [f"m={path}" for path in files] + [f"n={folder / 'all.parquet'}"]
    assert set(run_benchmark(named, folder / "pairs.csv", folder / "c", **options)["notes"]) == {"m", "n"}
    with pytest.raises(CamaeError, match="share some plates and not all; write model=file"):
        run_benchmark([*files, folder / "all.parquet"], folder / "pairs.csv", folder / "d", **options)
    table.drop(columns="emb_0007").to_csv(folder / "less.csv", index=False)
    with pytest.raises(CamaeError, match=r"other features than .*emb_0007"):
        run_benchmark({"m": [files[0], folder / "less.csv"]}, None, folder / "e", **options)


def test_an_empty_plate_is_refused():
    table = screen().replace({"Metadata_Plate": {"P1": None}})
    with pytest.raises(CamaeError, match="Metadata_Plate is empty in 24 rows"):
        maps.map_screen(table)


def test_fault_09_the_first_pair_of_a_file_without_a_header_is_kept(tmp_path):
    for text, ending in (
        ("NA,nan\nNULL,None\n", "csv"),
        ("NA\tnan\nNULL\tNone\n", "tsv"),
        ("NA,nan\nNULL,None", "txt"),
    ):
        (tmp_path / f"p.{ending}").write_text(text)
        with pytest.warns(UserWarning, match=r"has no header; its first line is read as a pair \(NA - nan\)"):
            assert maps.read_pairs(tmp_path / f"p.{ending}").tolist() == [["NA", "nan"], ["NULL", "None"]]


@pytest.mark.parametrize(
    ("header", "pairs"),
    [
        ("entity1,entity2", 2),
        ("gene_a,gene_b", 2),
        ("Gene 1,Gene 2", 2),
        ("source,target", 2),
        ("a,b", 2),
        ("GENE1,B", 3),  # gene1 is no header beside a name
        ("A,C", 3),
    ],
)
def test_fault_09_headers_are_known_by_their_content(tmp_path, header, pairs):
    (tmp_path / "p.csv").write_text(f"{header}\nA,B\nB,C\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error" if pairs == 2 else "ignore")
        assert len(maps.read_pairs(tmp_path / "p.csv")) == pairs


def test_fault_31_the_annotation_folder_of_efaar(real_data):
    omitted = Omissions()
    known = maps.read_pairs_folder(real_data / "metadata/efaar_benchmark_annotations", omitted)
    assert {name: len(pairs) for name, pairs in known.items()} == {
        "CORUM": 75298,
        "HuMAP": 117076,
        "Reactome": 22865,
        "SIGNOR": 12177,
        "StringDB": 116118,
    }
    assert {o.item for o in omitted} == {"CORUM_clusters.tsv", "LICENSE"}
    assert "lists clusters" in " ".join(omitted.lines())


def test_fault_31_one_bad_file_does_not_stop_the_others(folder):
    source = folder / "pairs"
    source.mkdir()
    lines = "entity1,entity2\n" + "".join(f"{a},{b}\n" for a, b in PAIRS)
    (source / "zipped.csv.gz").write_bytes(gzip.compress(lines.encode()))
    (source / "UPPER.CSV").write_text(lines)
    (source / "tabs.TSV").write_text(lines.replace(",", "\t"))
    (source / "lower.csv").write_text(lines.lower() + "G00,G01\n")
    (source / "absent.csv").write_text("gene1,gene2\nX,Y\n")
    (source / "ragged.csv").write_text("entity1,entity2\nA,B,C\n")
    (source / "broken.csv.gz").write_bytes(b"\x1f\x8b no")
    (source / "clusters.tsv").write_text("one complex\tG00 G01 G02\nanother\tG03 G04\n")
    (source / "README.md").write_text("words")
    screen().to_parquet(folder / "wells.parquet")
    found = run_benchmark([folder / "wells.parquet"], source, folder / "out", null_size=99)
    table = pd.DataFrame(found["table2"])
    assert set(table.source) == {"zipped", "UPPER", "tabs", "lower"}
    assert set(table.n_pairs[table.source != "lower"]) == {6}
    notes = " ".join(found["notes"]["wells"])
    assert "left out: absent: none of its 1 pairs is in the map" in notes
    assert (
        "12 of the unknown names differ from names of the map in upper and lower case alone (first: g00 for G00)"
        in notes
    )
    left_out = pd.read_csv(folder / "out" / "left_out.csv")
    assert set(left_out.item) == {"ragged.csv", "broken.csv.gz", "clusters.tsv", "README.md"}
    assert json.loads((folder / "out" / "benchmark.json").read_text()) == found


def test_gene_tables_are_text_and_disagreeing_genes_are_refused(tmp_path):
    (tmp_path / "arms.csv").write_text("gene,chrom_arm_name\nNA,chr1p\nnan,chr2q\nX,\n")
    assert maps.read_arms(tmp_path / "arms.csv") == {"NA": "chr1p", "nan": "chr2q"}
    (tmp_path / "z.TSV").write_text("gene\tzfpkm\nNA\t-3.5\nNULL\t\nY\t-inf\n")
    assert maps.read_expression(tmp_path / "z.TSV") == {"NA": -3.5, "Y": -np.inf}
    (tmp_path / "twice.csv").write_text("gene,chrom_arm_name\nA,chr1p\nA,chr2q\n")
    with pytest.raises(CamaeError, match=r"A has two values of chrom_arm_name \(chr1p and chr2q\)"):
        maps.read_arms(tmp_path / "twice.csv")
    (tmp_path / "word.csv").write_text("gene,zfpkm\nA,low\n")
    with pytest.raises(CamaeError, match=r"column 'zfpkm': 'low' is not a number"):
        maps.read_expression(tmp_path / "word.csv")


def test_fault_04_a_gene_table_that_matches_nothing_is_refused():
    v = np.random.default_rng(0).normal(size=(30, 3))
    genes = [f"G{k}" for k in range(30)]
    zfpkm = dict.fromkeys(genes, -5.0)
    with pytest.raises(CamaeError, match=r"none of the map's 30 genes is among the 1 of the table of arms"):
        maps.correct_arms(v, genes, {"g1": "chr1p"}, zfpkm)
    with pytest.raises(CamaeError, match="table of expression"):
        maps.correct_arms(v, genes, dict.fromkeys(genes, "chr1p"), {"x": 1.0})
