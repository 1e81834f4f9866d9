"""`camae benchmark`: from embeddings and known pairs to a results folder, several models side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from camae.errors import CamaeError, MissingBackendError
from camae.files import write_json, write_text
from camae.maps.arms import read_arms, read_expression
from camae.maps.pair_files import read_pairs_folder
from camae.maps.profiles import column, read_profiles
from camae.reproduction.benchmark.benchmark_tables import Screen, curves, table_2, table_3, table_4

BACKENDS = ("numpy", "cupy")


def run_benchmark(
    embeddings: Mapping[str, str | Path] | Sequence[str | Path],
    pairs: str | Path | None,
    out: str | Path,
    *,
    perturbation: str = "Metadata_Perturbation",
    plate: str = "Metadata_Plate",
    experiment: str | None = None,
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    target: str | None = None,
    arms: str | Path | None = None,
    expression: str | Path | None = None,
    tvn: bool = True,
    arm_correction: bool | None = None,
    bootstrap: int = 200,
    null_size: int = 10_000,
    seed: int = 0,
    backend: str = "numpy",
) -> dict[str, Any]:
    """Benchmark one or more models' profiles of the same screen and write a results folder.

    embeddings: model name -> profile file (.parquet, .csv(.gz), .tsv(.gz), .h5ad), or a list of files (the model is
    the file's stem). pairs: file or folder of known pairs (`read_pairs_folder`), None for Table 4 alone. plate,
    experiment: columns of the batches. control, negative: the column and its value that mark negative controls.
    target: column of targets joined by "|", for siblings. arms, expression: gene tables for the chromosome-arm
    correction. tvn: whether Table 3 (recall after TVN) is made. arm_correction: whether it gets a second row, TVN
    with arms corrected; None does where both gene tables are given. backend: "numpy" or "cupy".
    Writes table2.csv, table3.csv, arm_bias.csv, table4.csv, curves.csv (those that apply), benchmark.json,
    section.html and benchmark.html; every table has a first column `model`. Returns what benchmark.json holds.
    Raises CamaeError or MissingFileError for unusable input, MissingBackendError when CuPy is asked for and absent.
    """
    if (arms is None) != (expression is None):
        raise CamaeError(
            "The arm correction needs both tables: arms (gene, chrom_arm_name) and expression (gene, zfpkm)."
        )
    if arm_correction and (arms is None or not tvn):
        raise CamaeError(
            "The arm correction follows TVN and needs two gene tables: arms (gene, chrom_arm_name) and expression "
            "(gene, zfpkm)."
        )
    if arm_correction is False:
        arms = expression = None
    known = None if pairs is None else read_pairs_folder(pairs)
    genes = (
        (None, None) if arms is None or expression is None else (read_arms(arms), read_expression(expression))
    )
    columns = {"perturbation": perturbation, "plate": plate, "experiment": experiment, "target": target}
    tables: dict[str, list[pd.DataFrame]] = {}
    notes: dict[str, list[str]] = {}
    for model, path in _named(embeddings).items():
        screen = _screen(path, columns, control, negative, backend)
        found: dict[str, pd.DataFrame | None] = {}
        if known is not None:
            found["table2"] = table_2(screen, known, bootstrap, seed)
            if tvn:
                found["table3"], found["arm_bias"] = table_3(
                    screen, known, genes[0], genes[1], bootstrap, seed
                )
            found["curves"] = curves(screen, known)
        found["table4"] = table_4(screen, null_size, seed)
        notes[model] = screen.notes
        for name, table in found.items():
            if table is not None and len(table):
                table.insert(0, "model", model)
                tables.setdefault(name, []).append(table)
    return _write(
        Path(out), {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}, notes
    )


def _named(embeddings: Mapping[str, str | Path] | Sequence[str | Path]) -> dict[str, Path]:
    if isinstance(embeddings, Mapping):
        return {name: Path(path) for name, path in embeddings.items()}
    paths = [Path(path) for path in ([embeddings] if isinstance(embeddings, str | Path) else embeddings)]
    stems = [path.name.split(".")[0] for path in paths]
    if len(set(stems)) < len(stems):
        stems = [str(path) for path in paths]
    if not paths:
        raise CamaeError("No embeddings are given; name at least one profile file.")
    return dict(zip(stems, paths, strict=True))


def _screen(
    path: Path, columns: Mapping[str, str | None], control: str, negative: str, backend: str
) -> Screen:
    meta, x = read_profiles(path)
    named = {what: None if name is None else column(meta, name, what) for what, name in columns.items()}
    is_control = column(meta, control, "negative controls") == negative
    if not is_control.any():
        raise CamaeError(f"{path}: {control} says '{negative}' nowhere; there are no negative controls.")
    well = column(meta, "Metadata_Well", "well") if "Metadata_Well" in meta.columns else None
    assert named["perturbation"] is not None
    assert named["plate"] is not None
    return Screen(
        _on(backend, x),
        named["perturbation"],
        named["plate"],
        is_control,
        named["experiment"],
        named["target"],
        well,
    )


def _on(backend: str, x: Any) -> Any:
    if backend not in BACKENDS:
        raise CamaeError(f"Unknown backend '{backend}'; choose numpy or cupy.")
    if backend == "numpy":
        return x
    try:
        import cupy
    except ImportError:
        raise MissingBackendError(
            "CuPy is not installed; pip install 'camae[gpu]', or use backend numpy."
        ) from None
    return cupy.asarray(x)


def _write(out: Path, tables: dict[str, pd.DataFrame], notes: dict[str, list[str]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        name: [{k: _plain(v) for k, v in row.items()} for row in table.to_dict("records")]
        for name, table in tables.items()
    }
    result["notes"] = notes
    for name, table in tables.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False))
    body = _section(tables, notes)
    write_text(out / "section.html", body)
    from camae.reporting import html

    sections = [html.Section("benchmark", "Benchmark", body)]
    page = html.page("Map benchmark", ", ".join(notes), "", sections, "Written by camae benchmark.")
    write_text(out / "benchmark.html", page)
    write_json(out / "benchmark.json", result)
    return result


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value


def _section(tables: dict[str, pd.DataFrame], notes: dict[str, list[str]]) -> str:
    """The HTML section: one block per table, models side by side, and the recall curves."""
    from camae.reporting import html
    from camae.reporting.figures import recall_against_percentile
    from camae.reporting.style import svg

    parts = []
    for name, row, title in (
        ("table2", "alignment", "Recall of known pairs in both 5 % tails, by alignment (Table 2)"),
        ("table3", "step", "Recall after TVN (Table 3)"),
    ):
        if name in tables:
            wide = tables[name].pivot_table(
                index=["model", row], columns="source", values="recall", sort=False
            )
            cells = [
                [*map(str, index), *(f"{v:.3f}" for v in values)]
                for index, values in zip(wide.index, wide.to_numpy(), strict=True)
            ]
            header = ["model", row, *map(str, wide.columns)]
            parts.append(f"<h3>{title}</h3>" + html.table(header, cells, numeric=range(2, len(header))))
    if "table4" in tables:
        cells = [
            [r.model, r.task, r.alignment, str(r.n_groups), str(r.n_retrieved), f"{r.fraction_retrieved:.3f}"]
            for r in tables["table4"].itertuples()
        ]
        header = ["model", "task", "alignment", "groups", "retrieved", "fraction"]
        parts.append("<h3>Fraction retrieved (Table 4)</h3>" + html.table(header, cells, numeric=range(3, 6)))
    if "curves" in tables:
        for source, rows in tables["curves"].groupby("source", sort=False):
            picture = recall_against_percentile(rows.rename(columns={"model": "system"}))
            caption = f"{source}: recall against the share of most extreme cosines (Figure 5, right)."
            parts.append(html.figure(svg(picture, f"curve-{source}"), caption))
    for model, lines in notes.items():
        parts += [html.paragraph(f"{model}: {line}") for line in lines]
    return "\n".join(parts)
