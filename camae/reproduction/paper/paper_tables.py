"""The paper's Tables 2-5 from what was run here: one row per system, each cell a value or the reason it is empty."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from camae import maps
from camae.embedding_table import features_of
from camae.errors import CamaeError
from camae.reproduction.benchmark.benchmark_tables import Screen, table_2, table_4
from camae.reproduction.paper import published
from camae.reproduction.paper.evaluate_system import Outcome

INTERMEDIATE = "Intermediate MAE ViT checkpoints"


@dataclass
class PaperTable:
    """A table in the paper's layout. header and rows hold text; published: the paper's own, in the same layout."""

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


def table2(outcomes: Sequence[Outcome], pairs: Mapping[str, Any] | None, bootstrap: int) -> PaperTable:
    """Alignment methods, for the best trained system here (the paper: MAE ViT-L/8+)."""
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
    reason = "no known pairs were given" if pairs is None else "no trained system was run"
    if pairs is None or not done:
        table.rows = [[label, reason, ""] for label in published.TABLE_2]
        return table
    chosen = max(done, key=_mean_recall)
    screen = _screen(chosen)
    scores = table_2(screen, pairs, bootstrap=0)
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


def table3(outcomes: Sequence[Outcome], sources: Sequence[str], dataset: str) -> PaperTable:
    """Every system, in the paper's groups; intermediate checkpoints in theirs."""
    header = ["", "Model backbone", "Pretraining dataset", *sources]
    header += ["parameters", "training crops", "training FLOPs", "validation loss", "seconds", "run"]
    rows = []
    for group in published.TABLE_3:
        for o in outcomes:
            if group == (o.system.group if o.step is None else INTERMEDIATE):
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


def _dataset(o: Outcome, dataset: str) -> str:
    """What the system was trained on."""
    if o.system.trains:
        return dataset
    return "Imagenet-21k" if o.system.family == "imagenet" else "N/A"


def _cells(o: Outcome, sources: Sequence[str]) -> list[str]:
    f = o.facts
    missing = o.reason or "no known pairs were given"
    recalls = [
        f"{_three(o.recall[s]['value'])} ± {_three(o.recall[s]['se'])}" if s in o.recall else missing
        for s in (sources or [""])
    ]
    recalls = recalls[: len(sources)]
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


def table4(outcomes: Sequence[Outcome], target: str | None, null_size: int) -> PaperTable:
    """Perturbation and sibling retrieval of each system, TVN fitted on half of the controls."""
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
        if o.wells is None:
            table.rows.append([o.label, o.reason, o.reason, ""])
            continue
        screen = _screen(o, target)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = table_4(screen, null_size)
            held = found[found.alignment == "TVN, held out"].set_index("task").fraction_retrieved
            pert = _three(held["perturbations"]) if "perturbations" in held else screen.notes[-1]
            reason = "no targets were given" if target is None else "no perturbation was retrieved"
            siblings = _three(held["siblings"]) if "siblings" in held else reason
        except (CamaeError, KeyError) as error:
            pert = siblings = str(error)
        table.rows.append([o.label, pert, siblings, _run(o)])
    return table


def table5(
    outcomes: Sequence[Outcome],
    pairs: Mapping[str, Any] | None,
    gene_sets: Mapping[str, Sequence[str] | None],
) -> PaperTable:
    """Recall at 5 % false positives in gene sets; without any, over the whole map ("all")."""
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
        if o.map is None or pairs is None:
            reason = o.reason or "no known pairs were given"
            table.rows.append([o.label, "", *[reason] * len(columns), _run(o)])
            continue
        for source, listed in pairs.items():
            cells = [_at_fpr(o, listed, gene_sets.get(column)) for column in columns]
            table.rows.append([o.label, source, *cells, _run(o)])
    return table


def _at_fpr(o: Outcome, pairs: Any, genes: Sequence[str] | None) -> str:
    assert o.map is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _three(maps.recall_at_fpr(o.map.vectors, o.map.names, pairs, 0.05, genes)["recall"])
    except CamaeError as error:
        return str(error)


def read_gene_sets(folder: str | Path | None) -> dict[str, list[str]]:
    """Gene sets by file name: .txt files with one gene in a line."""
    if folder is None:
        return {}
    files = sorted(Path(folder).glob("*.txt"))
    if not files:
        raise CamaeError(f"{folder}: holds no .txt file with the genes of a set, one in a line")
    return {f.stem: [line.strip() for line in f.read_text().splitlines() if line.strip()] for f in files}


def _screen(o: Outcome, target: str | None = None) -> Screen:
    assert o.wells is not None
    table = o.wells
    batch = table.get("Metadata_Batch")
    several = batch is not None and batch.nunique() > 1
    if target is not None and target not in table:
        raise CamaeError(f"the screen has no column {target} for the targets of siblings")
    return Screen(
        features_of(table),
        table["Metadata_Perturbation"].to_numpy(str),
        table["Metadata_Plate"].to_numpy(str),
        (table["Metadata_control_type"] == "negcon").to_numpy(bool),
        batch.to_numpy(str) if several and batch is not None else None,
        None if target is None else table[target].to_numpy(str),
        table["Metadata_Well"].to_numpy(str) if "Metadata_Well" in table else None,
    )


def _mean_recall(o: Outcome) -> float:
    return sum(r["value"] for r in o.recall.values()) / max(1, len(o.recall))


def _run(o: Outcome) -> str:
    return str(o.facts.get("run", ""))


def _three(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1) if 0 <= value < 1 else f"{value:.3f}"
