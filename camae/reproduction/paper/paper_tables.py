"""Tables 2-5 in the paper's layout: one row per system, each cell a value or the reason it is empty."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

import numpy as np
import pandas as pd

from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.maps.arrays import beside
from camae.reporting.run_folder import Score
from camae.reproduction.benchmark.benchmark_tables import (
    GeneTables,
    Modality,
    PairsBySource,
    ScreenProfiles,
    recall_after_tvn,
    recall_by_alignment,
)
from camae.reproduction.benchmark.condition_table import retrieved_by_condition
from camae.reproduction.benchmark.gene_sets import recall_in_genes
from camae.reproduction.benchmark.retrieval_tables import HELD_OUT, RetrievalOptions
from camae.reproduction.paper import published
from camae.reproduction.paper.evaluate_system import Outcome
from camae.text_table import as_text

INTERMEDIATE = "Intermediate MAE ViT checkpoints"
NO_PAIRS = "no known pairs were given"


@dataclass
class PaperTable:
    """Table in the paper's layout, as text. published_header, published_rows: the paper's own numbers."""

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    published_header: list[str]
    published_rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """Our rows, for a CSV."""
        return pd.DataFrame(self.rows, columns=self.header)


def alignment_table(outcomes: Sequence[Outcome], pairs: PairsBySource | None) -> PaperTable:
    """Table 2: recall by alignment, of the trained system with the highest recall (the paper: MAE ViT-L/8+)."""
    done = [o for o in outcomes if o.wells is not None and o.step is None and o.system.trains]
    theirs = [[label, "/".join(_three(v) for v in values)] for label, values in published.TABLE_2.items()]
    table = PaperTable(
        "table2",
        "Impact of alignment on recall (Table 2)",
        ["Transformation method", "Recalls", "run"],
        [],
        ["Transformation method", f"Recalls ({'/'.join(published.SOURCES)})"],
        theirs,
    )
    if pairs is None or not done:
        reason = NO_PAIRS if pairs is None else "no trained system was run"
        table.rows = [[label, reason, ""] for label in published.TABLE_2]
        return table
    chosen = max(done, key=_mean_recall)
    screen = _profiles(chosen)
    scores = recall_by_alignment(screen, pairs)
    cells = {
        label: "/".join(_three(v) for v in part.recall)
        for label, part in scores.groupby("alignment", sort=False)
    }
    no_experiments = "one experiment only: the screen has no second Metadata_Batch"
    table.rows = [[label, cells.get(label, no_experiments), _run(chosen)] for label in published.TABLE_2]
    table.header[1] = f"Recalls ({'/'.join(map(str, dict.fromkeys(scores.source)))})"
    table.notes = [
        f"Here: {chosen.label}, the trained system with the highest mean recall.",
        "Every component that the controls span is kept here; Table 3 keeps at most half as many as there are "
        "controls, so the two TVN rows differ.",
        *screen.notes,
    ]
    return table


def recall_table(
    outcomes: Sequence[Outcome],
    sources: Sequence[str],
    dataset: str,
    pairs: PairsBySource | None = None,
    genes: GeneTables | None = None,
) -> PaperTable:
    """Table 3: recall of every system, in the paper's groups; intermediate checkpoints in theirs.

    genes: of the chromosome-arm correction; each source then has a second column, with arms corrected.
    """
    corrected = [] if genes is None else [f"{source}, arms corrected" for source in sources]
    header = ["", "Model backbone", "Pretraining dataset", *sources, *corrected]
    header += ["parameters", "training crops", "training FLOPs", "validation loss", "seconds", "run"]
    rows = []
    for group in published.TABLE_3:
        for o in outcomes:
            if group == _group(o):
                arms = [] if genes is None else _arms_corrected(o, sources, pairs, genes)
                cells = [*[_recall_cell(o.recall, o, source) for source in sources], *arms, *_facts(o)]
                rows.append([group, o.label, _dataset(o, dataset), *cells])
    theirs = [
        [group, backbone, data, *(_three(v) for v in values)]
        for group, block in published.TABLE_3.items()
        for backbone, data, values in block
    ]
    return PaperTable(
        "table3",
        "Recall of known relationships in both 5 % tails, after TVN (Table 3)",
        header,
        rows,
        ["", "Model backbone", "Pretraining dataset", *published.SOURCES],
        theirs,
    )


def _group(o: Outcome) -> str:
    return o.system.group if o.step is None else INTERMEDIATE


def _dataset(o: Outcome, dataset: str) -> str:
    """The data set that the system was trained on."""
    if o.system.trains:
        return dataset
    return "Imagenet-21k" if o.system.family == "imagenet" else "N/A"


def _facts(o: Outcome) -> list[str]:
    """The columns that follow recall; empty where a fact is not known."""
    f = o.facts
    loss = f.get("val_loss")
    return [
        f"{f['parameters']:,}" if f.get("parameters") else "",
        f"{f['training_crops']:,}" if f.get("training_crops") else "",
        f"{f['training_flops']:.2e}" if f.get("training_flops") else "",
        "" if loss is None else f"{loss:.4f}",
        f"{f['seconds']:.0f}" if "seconds" in f else "",
        _run(o),
    ]


def _recall_cell(recall: Mapping[str, Score], o: Outcome, source: str) -> str:
    if source not in recall:
        return o.reason or NO_PAIRS
    score = recall[source]
    return f"{_three(score['value'])} ± {_three(score['se'])}"


def _arms_corrected(
    o: Outcome, sources: Sequence[str], pairs: PairsBySource | None, genes: GeneTables
) -> list[str]:
    """Recall by source after TVN and the arm correction, or the reason why there is none."""
    if o.wells is None or pairs is None:
        return [o.reason or NO_PAIRS] * len(sources)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table, _ = recall_after_tvn(_profiles(o), pairs, genes)
    except CamaeError as error:
        return [str(error)] * len(sources)
    rows = table[table.step != table.step.iloc[0]].astype({"recall": float, "se": float})
    recall: dict[str, Score] = {
        str(r.source): {"value": float(r.recall), "se": float(r.se)} for r in rows.itertuples()
    }
    return [_recall_cell(recall, o, source) for source in sources]


def retrieval_table(
    outcomes: Sequence[Outcome],
    target: str | None,
    null_size: int,
    condition: Sequence[str] = (),
    modality: str = "compound",
) -> PaperTable:
    """Table 4: perturbation and sibling retrieval of each system, TVN fitted on half of the controls.

    condition: columns (cell type, time) whose values divide the screen; cells are then mean and spread (ddof 1) over
    them. modality: "compound", "crispr" or "orf", or the column that says so.
    """
    table = PaperTable(
        "table4",
        "Fraction retrieved: perturbations and siblings (Table 4)",
        ["Model backbone, dataset", "Pert.", "Siblings", "run"],
        [],
        ["Model backbone, dataset", "Pert.", "Siblings"],
        [[name, *(f"{m:.2f} ± {s:.2f}" for m, s in v)] for name, v in published.TABLE_4.items()],
        [
            f"Mean and spread over {', '.join(condition)}. Negatives are controls that TVN did not see."
            if condition
            else "One screen here, so no spread over cell types and times. Negatives are controls that TVN did not see."
        ],
    )
    for o in outcomes:
        perturbations, siblings = (
            (o.reason, o.reason)
            if o.wells is None
            else _retrieval_cells(o, _profiles(o, target, condition, modality), null_size)
        )
        table.rows.append([o.label, perturbations, siblings, _run(o)])
    return table


def _retrieval_cells(o: Outcome, screen: ScreenProfiles, null_size: int) -> tuple[str, str]:
    """Fractions of perturbations and of siblings retrieved, each or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, mean = retrieved_by_condition(screen, RetrievalOptions(null_size))
    except CamaeError as error:
        return str(error), str(error)
    if found.empty:
        return screen.notes[-1], screen.notes[-1]
    table = mean if len(mean) else found.assign(mean=found.fraction_retrieved, sd=float("nan"))
    held_out = table[table.alignment == HELD_OUT].set_index("task")
    cells = {
        str(task): _three(row["mean"]) + ("" if pd.isna(row["sd"]) else f" ± {_three(row['sd'])}")
        for task, row in held_out.iterrows()
    }
    none = "no targets were given" if screen.target is None else "no perturbation was retrieved"
    if screen.target is not None and screen.modality == "orf":
        none = "ORFs have no siblings"
    return cells["perturbations"], cells.get("siblings", none)


def gene_set_table(
    outcomes: Sequence[Outcome], pairs: PairsBySource | None, gene_sets: Mapping[str, Sequence[str]]
) -> PaperTable:
    """Table 5: recall at 5 % false positives in gene sets; without any, over the whole map."""
    columns = list(gene_sets) or ["all perturbations"]
    table = PaperTable(
        "table5",
        "Recall at 5 % false positives in gene sets (Table 5)",
        ["Model backbone", "source", *columns, "run"],
        [],
        ["Model backbone", "Training data", *published.GENE_SETS],
        [[*names, *(f"{v:.2f}" for v in values)] for names, values in published.TABLE_5.items()],
    )
    if not gene_sets:
        table.notes = [
            f"{', '.join(published.GENE_SETS)}: no data (give their lists of genes with gene_sets)."
        ]
    for o in outcomes:
        if o.mapped is None or pairs is None:
            reason = o.reason or NO_PAIRS
            table.rows.append([o.label, "", *[reason] * len(columns), _run(o)])
            continue
        for source, listed in pairs.items():
            cells = [
                _three(value) if isinstance(value, float) else value
                for value in (
                    recall_in_genes(o.mapped.vectors, o.mapped.names, listed, gene_sets.get(column))
                    for column in columns
                )
            ]
            table.rows.append([o.label, source, *cells, _run(o)])
    return table


def _profiles(
    o: Outcome, target: str | None = None, condition: Sequence[str] = (), modality: str = "compound"
) -> ScreenProfiles:
    """Profiles of the wells, in the library of the map. Metadata_Batch is the experiment, where there are several."""
    assert o.wells is not None
    table = o.wells
    fixed = modality in get_args(Modality)
    for name, what in [
        (target, "targets of siblings"),
        *((name, "conditions of Table 4") for name in condition),
        (None if fixed else modality, "modality"),
    ]:
        if name is not None and name not in table:
            raise CamaeError(f"the screen has no column {name} for the {what}")
    several = "Metadata_Batch" in table and table["Metadata_Batch"].nunique() > 1
    x = features_of(table)
    parts = [as_text(table[name]).to_numpy(str) for name in condition]
    return ScreenProfiles(
        x if o.mapped is None else beside(x, o.mapped.vectors),
        table["Metadata_Perturbation"].to_numpy(str),
        table["Metadata_Plate"].to_numpy(str),
        (table["Metadata_control_type"] == "negcon").to_numpy(bool),
        experiment=table["Metadata_Batch"].to_numpy(str) if several else None,
        target=None if target is None else table[target].to_numpy(str),
        well=table["Metadata_Well"].to_numpy(str) if "Metadata_Well" in table else None,
        condition=np.array([" ".join(row) for row in zip(*parts, strict=True)]) if parts else None,
        modalities=None if fixed else as_text(table[modality]).to_numpy(str),
        modality=cast(Modality, modality) if fixed else "compound",
    )


def _mean_recall(o: Outcome) -> float:
    return sum(score["value"] for score in o.recall.values()) / max(1, len(o.recall))


def _run(o: Outcome) -> str:
    return o.facts.get("run", "")


def _three(value: float) -> str:
    """Three decimals, without the leading zero, as the paper writes recall."""
    return f"{value:.3f}".removeprefix("0")
