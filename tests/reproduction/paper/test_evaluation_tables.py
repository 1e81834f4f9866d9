"""Table 3 with chromosome arms corrected and Table 4 over conditions, of systems whose wells are given."""

import numpy as np
import pandas as pd
import pytest

from camae import maps
from camae.embedding_table import feature_columns
from camae.errors import CamaeError
from camae.maps.perturbation_map import map_screen
from camae.reproduction.benchmark.benchmark_tables import GeneTables
from camae.reproduction.paper.evaluate_system import Outcome
from camae.reproduction.paper.paper_systems import SMALLEST
from camae.reproduction.paper.paper_tables import recall_table, retrieval_table

GENES = [f"G{k:02d}" for k in range(60)]
PAIRS = {"known": np.array([(GENES[2 * k], GENES[2 * k + 1]) for k in range(30)], dtype=object)}


@pytest.fixture(scope="module")
def outcome():
    """A system's wells on two cell types; genes of one arm share a shift that hides what pairs share."""
    rng = np.random.default_rng(0)
    effect = np.repeat(rng.normal(size=(30, 24)), 2, axis=0)
    shift = 6 * rng.normal(size=24) * (np.arange(60) % 2 == 0)[:, None]
    rows, vectors = [], []
    for cell in ("one", "two"):
        for plate in range(3):
            for k, name in enumerate([*GENES, *["DMSO"] * 60]):
                rows.append(
                    {
                        "Metadata_Plate": f"{cell}{plate}",
                        "Metadata_Well": f"{'ABCDEFGHIJ'[k // 12]}{k % 12 + 1:02d}",
                        "Metadata_Perturbation": name,
                        "Metadata_control_type": "" if k < 60 else "negcon",
                        "Metadata_Cell": cell,
                        "Metadata_target": f"T{k // 2}" if k < 60 else "",
                    }
                )
                vectors.append(((effect + shift)[k] if k < 60 else 0) + rng.normal(size=24))
    wells = pd.concat(
        [pd.DataFrame(rows), pd.DataFrame(np.array(vectors), columns=feature_columns(24))], axis=1
    )
    mapped = map_screen(wells)
    score = maps.recall(mapped.vectors, mapped.names, PAIRS, interval=True).iloc[0]
    recall = {"known": {"value": float(score.recall), "se": float(score.se)}}
    return Outcome(SMALLEST[0], "done", wells=wells, mapped=mapped, recall=recall, facts={"run": "runs/a"})


def test_recall_is_given_with_chromosome_arms_corrected(outcome):
    genes = GeneTables({g: f"chr{k % 2}p" for k, g in enumerate(GENES)}, dict.fromkeys(GENES, -5.0))
    table = recall_table([outcome], ["known"], "a screen", PAIRS, genes)
    assert table.header[3:5] == ["known", "known, arms corrected"]
    (row,) = table.rows
    plain, corrected = (float(cell.split(" ± ")[0]) for cell in row[3:5])
    assert plain == pytest.approx(outcome.recall["known"]["value"], abs=5e-4)
    # The shift of an arm is the same for half of the genes and parts every pair.
    assert corrected > plain + 0.2
    assert "arms corrected" not in " ".join(recall_table([outcome], ["known"], "a screen", PAIRS).header)
    missing = GeneTables({"X": "chr1p"}, {"X": -5.0})
    refused = recall_table([outcome], ["known"], "a screen", PAIRS, missing).rows[0][4]
    assert "arms" in refused


def test_table_4_is_mean_and_spread_over_conditions(outcome):
    whole = retrieval_table([outcome], "Metadata_target", 500)
    assert " ± " not in whole.rows[0][1]
    each = [
        Outcome(
            outcome.system,
            "done",
            wells=outcome.wells[outcome.wells.Metadata_Cell == cell].reset_index(drop=True),
        )
        for cell in ("one", "two")
    ]
    parts = [float(retrieval_table([o], "Metadata_target", 500).rows[0][1]) for o in each]
    found = retrieval_table([outcome], "Metadata_target", 500, ["Metadata_Cell"])
    mean, spread = (float(text) for text in found.rows[0][1].split(" ± "))
    assert mean == pytest.approx(np.mean(parts), abs=2e-3)
    assert spread == pytest.approx(np.std(parts, ddof=1), abs=2e-3)
    assert found.notes[0].startswith("Mean and spread over Metadata_Cell")
    orf = retrieval_table([outcome], "Metadata_target", 500, ["Metadata_Cell"], "orf")
    assert orf.rows[0][2] == "ORFs have no siblings"
    with pytest.raises(
        CamaeError, match="the screen has no column Metadata_Time for the conditions of Table 4"
    ):
        retrieval_table([outcome], None, 500, ["Metadata_Time"])
