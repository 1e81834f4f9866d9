"""Tables 2-5 in the paper's layout: one row per system, each cell a value or the reason it is empty."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from camae import maps
from camae.embedding_table import features_of
from camae.errors import CamaeError, MissingFileError
from camae.maps.arrays import beside
from camae.maps.pairs import Pairs
from camae.maps.perturbation_map import ScreenMap
from camae.reproduction.benchmark.benchmark_tables import (
    PairsBySource,
    ScreenProfiles,
    recall_by_alignment,
)
from camae.reproduction.benchmark.retrieval_tables import HELD_OUT, fraction_retrieved
from camae.reproduction.paper import published
from camae.reproduction.paper.evaluate_system import Outcome
from camae.text_table import as_text, read_rows

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


def recall_table(outcomes: Sequence[Outcome], sources: Sequence[str], dataset: str) -> PaperTable:
    """Table 3: recall of every system, in the paper's groups; intermediate checkpoints in theirs."""
    header = ["", "Model backbone", "Pretraining dataset", *sources]
    header += ["parameters", "training crops", "training FLOPs", "validation loss", "seconds", "run"]
    rows = []
    for group in published.TABLE_3:
        for o in outcomes:
            if group == _group(o):
                rows.append([group, o.label, _dataset(o, dataset), *_cells(o, sources)])
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


def _cells(o: Outcome, sources: Sequence[str]) -> list[str]:
    """Recall by source, and the columns that follow it; empty where a fact is not known."""
    f = o.facts
    recalls = [_recall_cell(o, source) for source in sources]
    loss = f.get("val_loss")
    return [
        *recalls,
        f"{f['parameters']:,}" if f.get("parameters") else "",
        f"{f['training_crops']:,}" if f.get("training_crops") else "",
        f"{f['training_flops']:.2e}" if f.get("training_flops") else "",
        "" if loss is None else f"{loss:.4f}",
        f"{f['seconds']:.0f}" if "seconds" in f else "",
        _run(o),
    ]


def _recall_cell(o: Outcome, source: str) -> str:
    if source not in o.recall:
        return o.reason or NO_PAIRS
    score = o.recall[source]
    return f"{_three(score['value'])} ± {_three(score['se'])}"


def retrieval_table(outcomes: Sequence[Outcome], target: str | None, null_size: int) -> PaperTable:
    """Table 4: perturbation and sibling retrieval of each system, TVN fitted on half of the controls."""
    table = PaperTable(
        "table4",
        "Fraction retrieved: perturbations and siblings (Table 4)",
        ["Model backbone, dataset", "Pert.", "Siblings", "run"],
        [],
        ["Model backbone, dataset", "Pert.", "Siblings"],
        [[name, *(f"{m:.2f} ± {s:.2f}" for m, s in v)] for name, v in published.TABLE_4.items()],
        [
            "One screen here, so no spread over cell types and times. Negatives are controls that TVN did not see."
        ],
    )
    for o in outcomes:
        perturbations, siblings = (
            (o.reason, o.reason) if o.wells is None else _retrieval_cells(o, target, null_size)
        )
        table.rows.append([o.label, perturbations, siblings, _run(o)])
    return table


def _retrieval_cells(o: Outcome, target: str | None, null_size: int) -> tuple[str, str]:
    """Fractions of perturbations and of siblings retrieved, each or the reason why there is none."""
    screen = _profiles(o, target)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = fraction_retrieved(screen, null_size)
    except CamaeError as error:
        return str(error), str(error)
    if found.empty:
        return screen.notes[-1], screen.notes[-1]
    held_out = found[found.alignment == HELD_OUT].set_index("task").fraction_retrieved
    perturbations = _three(held_out["perturbations"])
    if "siblings" in held_out:
        return perturbations, _three(held_out["siblings"])
    return perturbations, "no targets were given" if target is None else "no perturbation was retrieved"


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
            cells = [_recall_at_fpr(o.mapped, listed, gene_sets.get(column)) for column in columns]
            table.rows.append([o.label, source, *cells, _run(o)])
    return table


def _recall_at_fpr(mapped: ScreenMap, pairs: Pairs, genes: Sequence[str] | None) -> str:
    """Recall at 5 % false positives among `genes` (None: all), or the reason why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _three(maps.recall_at_fpr(mapped.vectors, mapped.names, pairs, 0.05, genes)["recall"])
    except CamaeError as error:
        return str(error)


def read_gene_sets(folder: str | Path | None) -> dict[str, list[str]]:
    """Gene sets by file name: .txt files with one gene in a line.

    Raises MissingFileError where there is no such folder, CamaeError for a folder without sets, two sets of one name,
    a line of several cells, and what `read_rows` refuses.
    """
    if folder is None:
        return {}
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder}: no such folder of gene sets")
    sets: dict[str, list[str]] = {}
    for file in sorted(f for f in Path(folder).iterdir() if f.name.lower().endswith((".txt", ".txt.gz"))):
        name = re.sub(r"\.txt(\.gz)?$", "", file.name, flags=re.IGNORECASE)
        if name in sets:
            raise CamaeError(f"{file}: another file of the folder holds the gene set {name}; keep one")
        rows = read_rows(file)
        if rows.num_columns > 1:
            raise CamaeError(f"{file}, line 1: holds {rows.num_columns} cells where a line has one gene")
        genes = (as_text(rows.column(0).to_pandas()).str.strip()).tolist()
        sets[name] = [gene for gene in genes if gene]
    if not sets:
        raise CamaeError(f"{folder}: holds no .txt file with the genes of a set, one in a line")
    return sets


def _profiles(o: Outcome, target: str | None = None) -> ScreenProfiles:
    """Profiles of the wells, in the library of the map. Metadata_Batch is the experiment, where there are several."""
    assert o.wells is not None
    table = o.wells
    if target is not None and target not in table:
        raise CamaeError(f"the screen has no column {target} for the targets of siblings")
    several = "Metadata_Batch" in table and table["Metadata_Batch"].nunique() > 1
    x = features_of(table)
    return ScreenProfiles(
        x if o.mapped is None else beside(x, o.mapped.vectors),
        table["Metadata_Perturbation"].to_numpy(str),
        table["Metadata_Plate"].to_numpy(str),
        (table["Metadata_control_type"] == "negcon").to_numpy(bool),
        experiment=table["Metadata_Batch"].to_numpy(str) if several else None,
        target=None if target is None else table[target].to_numpy(str),
        well=table["Metadata_Well"].to_numpy(str) if "Metadata_Well" in table else None,
    )


def _mean_recall(o: Outcome) -> float:
    return sum(score["value"] for score in o.recall.values()) / max(1, len(o.recall))


def _run(o: Outcome) -> str:
    return o.facts.get("run", "")


def _three(value: float) -> str:
    """Three decimals, without the leading zero, as the paper writes recall."""
    return f"{value:.3f}".removeprefix("0")
