"""RefChemDB as known pairs: beside loops over all rows, each rule by an example, and sentences for other tables."""

import itertools

import numpy as np
import pandas as pd
import pytest
from jump_lite_release import annotations

from camae.errors import CamaeError
from camae.maps.pairs import read_pairs_folder
from camae.maps.refchemdb import TIERS, read_refchemdb
from camae.omissions import Omissions


def random_table(seed, rows=400):
    """Annotations of 30 compounds and 8 targets with a CRISPR and an ORF reagent each, drawn at random."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 8, rows)
    modality = rng.choice(["crispr", "orf"], rows)
    return pd.DataFrame(
        {
            "Metadata_JCP2022": [f"JCP2022_{i:06d}" for i in rng.integers(0, 30, rows)],
            "target": [f"G{i}" for i in target],
            "mode": rng.choice(["Negative", "Positive", "unspecified"], rows, p=[0.05, 0.02, 0.93]),
            "modality": modality,
            "Metadata_JCP2022_target": [
                f"JCP2022_{(8 if m == 'crispr' else 9)}{t:05d}" for m, t in zip(modality, target, strict=True)
            ],
            "CrossModalityTier": rng.choice(TIERS, rows),
            "WithinModalityTier": rng.choice([*TIERS, "Excluded"], rows),
        }
    )


def by_loops(table, tier):
    """Both sources by the definition, row by row and pair by pair."""
    rows = table.to_dict("records")
    directions = {}
    for r in rows:
        if r["mode"] != "unspecified":
            directions.setdefault((r["Metadata_JCP2022"], r["target"]), set()).add(r["mode"])
    sure = [
        r
        for r in rows
        if r["mode"] != "unspecified" and len(directions[r["Metadata_JCP2022"], r["target"]]) == 1
    ]
    genes, compounds = set(), set()
    for r in sure:
        same = (r["mode"], r["modality"]) in (("Negative", "crispr"), ("Positive", "orf"))
        if same and r["CrossModalityTier"] <= tier:
            genes.add((r["Metadata_JCP2022"], r["Metadata_JCP2022_target"]))
    for a, b in itertools.combinations(sure, 2):
        names = sorted((a["Metadata_JCP2022"], b["Metadata_JCP2022"]))
        alike = a["target"] == b["target"] and a["mode"] == b["mode"] and names[0] != names[1]
        confident = all(r["WithinModalityTier"] in TIERS and r["WithinModalityTier"] <= tier for r in (a, b))
        if alike and confident:
            compounds.add(tuple(names))
    return genes, compounds


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_those_of_loops(tmp_path, tier, seed):
    table = random_table(seed)
    table.to_parquet(tmp_path / "r.parquet")
    genes, compounds = by_loops(table, tier)
    found = read_refchemdb(tmp_path / "r.parquet", tier)
    for source, expected in (("RefChemDB_genes", genes), ("RefChemDB_compounds", compounds)):
        pairs = [tuple(pair) for pair in found.get(source, [])]
        assert len(set(pairs)) == len(pairs)
        assert set(pairs) == expected


def test_same_target_and_same_direction_by_example(tmp_path):
    annotations().to_parquet(tmp_path / "r.parquet")
    omitted = Omissions()
    found = read_pairs_folder(tmp_path / "r.parquet", omitted)
    assert found["RefChemDB_genes"].tolist() == [
        ["JCP2022_000001", "JCP2022_800001"],
        ["JCP2022_000002", "JCP2022_800001"],
        ["JCP2022_000003", "JCP2022_900001"],
    ]
    assert found["RefChemDB_compounds"].tolist() == [
        ["JCP2022_000001", "JCP2022_000002"],
        ["JCP2022_000003", "JCP2022_000004"],
    ]
    assert omitted.lines() == [
        "2 pairs left out: RefChemDB names no direction (first: JCP2022_000005 - GENEC)",
    ]
    omitted = Omissions()
    assert list(read_pairs_folder(tmp_path / "r.parquet", omitted, "Tier1")) == ["RefChemDB_genes"]
    assert (
        "3 pairs left out: its confidence is below Tier1 (first: JCP2022_000002 - GENEA)" in omitted.lines()
    )


def test_a_compound_of_both_directions_is_left_out(tmp_path):
    table = annotations()
    other = table[:1].assign(mode="Positive", modality="orf", Metadata_JCP2022_target="JCP2022_900009")
    pd.concat([table, other]).to_parquet(tmp_path / "r.parquet")
    omitted = Omissions()
    found = read_refchemdb(tmp_path / "r.parquet", omitted=omitted)
    assert "JCP2022_000001" not in found["RefChemDB_genes"]
    assert (
        "1 pair left out: RefChemDB names both directions (first: JCP2022_000001 - GENEA)" in omitted.lines()
    )


def test_beside_other_sources_in_a_folder_and_with_a_column_of_row_numbers(tmp_path):
    table = annotations()
    table.insert(0, "", range(len(table)))
    table.to_parquet(tmp_path / "annotations.parquet")
    (tmp_path / "CORUM.csv").write_text("a,b\nTP53,MDM2\n")
    with pytest.warns(UserWarning, match="RefChemDB names no direction"):
        found = read_pairs_folder(tmp_path)
    assert sorted(found) == ["CORUM", "RefChemDB_compounds", "RefChemDB_genes"]


def test_refusals(tmp_path):
    annotations().to_parquet(tmp_path / "r.parquet")
    with pytest.raises(CamaeError, match="refchemdb_tier 'best' is not one of Tier0, Tier1, Tier2, Tier3"):
        read_refchemdb(tmp_path / "r.parquet", "best")
    with pytest.raises(
        CamaeError, match="no pair has a direction and a confidence of Tier0 or better; choose a lower"
    ):
        read_refchemdb(tmp_path / "r.parquet", "Tier0")
    annotations().drop(columns="mode").to_parquet(tmp_path / "r.parquet")
    with pytest.raises(CamaeError, match="has no column mode, so it is not RefChemDB matched with JUMP"):
        read_refchemdb(tmp_path / "r.parquet")
