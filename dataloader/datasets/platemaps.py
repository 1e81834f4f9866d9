"""Platemaps of the Cell Painting Gallery: perturbations joined by plate and well."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import control_type, table_named, tables_in
from camae.dataloader.datasets.joins import Match, joined
from camae.dataloader.identity import metadata_column
from camae.errors import CamaeError, MissingFileError
from camae.text_table import read_text_table

# What a platemap or its external metadata calls the perturbation itself, whatever it is.
_STATED = ("perturbation",)
# Names of a compound, the most readable first, and of a gene (CRISPR, ORF). A gene beside a compound is its target.
_COMPOUNDS = ("pert_iname", "compound", "compound_name", "treatment", "broad_sample")
_GENES = ("gene", "gene_name", "gene_symbol", "Symbol")
_OTHERS = ("Name", "treatment", "broad_sample", "JCP2022")
# A row with one of these is a compound's.
_STRUCTURES = ("pert_iname", "compound", "compound_name", "smiles", "inchi", "inchikey", "pubchem_cid")
# What says that a reagent changes a gene, whatever else it is named by.
_MODALITIES = ("modality", "perturbation_type", "perturbation_modality", "pert_type")
_GENE_MODALITIES = ("crispr", "orf", "trt_oe", "trt_sh", "trt_xpr", "sirna", "shrna")
_CONTROLS = ("control_type", "pert_type", "well_type")
# How tables exported from R and Python write an empty cell; a name only where nothing else names the perturbation.
_BLANK = ("", "NA", "nan", "NaN", "None")


def with_platemaps(meta: pd.DataFrame, workspace: Path, notes: list[str]) -> pd.DataFrame:
    """Platemap join: `meta` of one load_data table with Metadata_Perturbation and Metadata_control_type filled in.

    Reads `workspace/metadata/platemaps/<batch>/barcode_platemap.csv` and `platemap/<name>.txt`, then the tables of
    `workspace/metadata/external_metadata` by broad_sample. Without them the columns the table itself has are used.
    notes: a sentence on every join is added.
    Raises CamaeError for a platemap that is named but missing, or a join that matches nothing.
    """
    parts = []
    for (batch, plate), rows in meta.groupby(["Metadata_Batch", "Metadata_Plate"], sort=False):
        layout = _layout(workspace, str(batch), str(plate), notes)
        part = rows
        if layout is not None:
            what, table = layout
            part, match = joined(rows, table, ["Metadata_Well"], f"{what} (plate {plate})")
            part.index = rows.index
            _note(match, notes)
        parts.append(part)
    table = pd.concat(parts).sort_index().fillna("")
    perturbation, control = perturbations(table)
    return table.assign(Metadata_Perturbation=perturbation, Metadata_control_type=control)


def _note(match: Match, notes: list[str]) -> None:
    notes.append(str(match))
    if match.left_over:
        warnings.warn(str(match), stacklevel=2)


def _layout(workspace: Path, batch: str, plate: str, notes: list[str]) -> tuple[Path, pd.DataFrame] | None:
    """The file and table of a plate's wells, external metadata joined; None where nobody names a platemap."""
    folder = workspace / "metadata" / "platemaps" / batch
    barcodes = table_named(folder, "barcode_platemap")
    if barcodes is None:
        return None
    table = read_text_table(barcodes)
    plates, maps = _column(table, "assayplatebarcode", barcodes), _column(table, "platemapname", barcodes)
    named = table.loc[table[plates] == plate, maps].unique()
    if len(named) > 1:
        raise CamaeError(
            f"{barcodes}: names two platemaps for plate {plate}, {named[0]} and {named[1]}: keep one"
        )
    if not len(named):
        sentence = (
            f"{barcodes}: plate {plate} is not among its {len(table)} plates, so its wells have no platemap"
        )
        if not set(table[plates]) & _plates_of(workspace, batch):
            raise CamaeError(f"{sentence}; it names {table[plates].iloc[0] if len(table) else 'none'}")
        warnings.warn(sentence, stacklevel=2)
        notes.append(sentence)
        return None
    file = table_named(folder / "platemap", named[0])
    if file is None:
        raise MissingFileError(
            f"{folder / 'platemap' / named[0]}.txt: the platemap of plate {plate} is missing"
        )
    return file, _platemap(file, workspace, notes)


def _plates_of(workspace: Path, batch: str) -> set[str]:
    folder = workspace / "load_data_csv" / batch
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def _column(table: pd.DataFrame, name: str, file: Path) -> str:
    """Column by its name without blanks, underscores and case. Raises CamaeError when there is none."""
    found = [c for c in table.columns if _plain(c) == name]
    if not found:
        raise CamaeError(
            f"{file}: has no column {name!r} (in any spelling); it has {', '.join(table.columns)}"
        )
    return str(found[0])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("metadata_"))


def _platemap(file: Path, workspace: Path, notes: list[str]) -> pd.DataFrame:
    """One platemap by Metadata_Well, external metadata joined by broad_sample, all columns as Metadata_*."""
    layout = read_text_table(file)
    wells = [c for c in layout.columns if _plain(c) in ("wellposition", "well", "wellname", "wellid")]
    if not wells:
        raise CamaeError(f"{file}: has no column well_position or well; it has {', '.join(layout.columns)}")
    layout = layout.rename(columns={wells[0]: "Metadata_Well"})
    sample = next((c for c in layout.columns if _plain(c) == "broadsample"), None)
    external = workspace / "metadata" / "external_metadata"
    tables = tables_in(external) if sample is not None else []
    own, matches = set(layout.columns), 0
    for path in tables:
        extra = read_text_table(path)
        key = next((c for c in extra.columns if _plain(c) == "broadsample"), None)
        if key is None or sample is None:
            continue
        extra = _once(extra.rename(columns={key: sample}), sample, path)
        if set(extra[sample]) & set(layout[sample]) - {""}:
            found, match = joined(layout[[sample]], extra, [sample], str(path))
            notes.append(f"{match}, into platemap {file.name}")
            matches += 1
            # Compounds and genes have a table each: every one fills what the others left empty.
            for column in (c for c in found.columns if c not in own):
                before = layout[column] if column in layout else pd.Series("", index=layout.index)
                layout[column] = before.where(before != "", found[column])
    if tables and not matches and sample is not None and (layout[sample] != "").any():
        raise CamaeError(
            f"{external}: none of its {len(tables)} tables has a broad_sample of {file}, as "
            f"{layout[sample][layout[sample] != ''].iloc[0]!r}"
        )
    return layout.rename(columns={c: metadata_column(str(c)) for c in layout.columns})


def _once(table: pd.DataFrame, key: str, path: Path) -> pd.DataFrame:
    """One row per key. Raises CamaeError where two rows of one key name different perturbations."""
    naming = [c for c in table.columns if _plain(c) in {_plain(n) for n in (*_STATED, *_COMPOUNDS, *_GENES)}]
    kinds = table[[key, *(c for c in naming if c != key)]].drop_duplicates()
    again = kinds[kinds.duplicated(key, keep=False) & (kinds[key] != "")]
    if len(again):
        raise CamaeError(f"{path}: gives {again[key].iloc[0]!r} two names: {_pair(again, key)}")
    return table.drop_duplicates(key)


def _pair(rows: pd.DataFrame, key: str) -> str:
    first, second = (rows[rows[key] == rows[key].iloc[0]].drop(columns=key).iloc[i].tolist() for i in (0, 1))
    return " and ".join(
        next(a for a, b in zip(x, y, strict=True) if a != b) or "none"
        for x, y in ((first, second), (second, first))
    )


def perturbations(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Perturbation and control type of every row, from the columns that name them.

    A compound is named by itself, also where its target gene is known; CRISPR and ORF reagents by their gene. A well
    whose sample is empty and whose solvent is named is a negative control of that name (Gallery platemaps leave
    broad_sample blank for DMSO).
    """
    # A column that was there as Metadata_Perturbation is named like the plain one.
    columns = {
        str(c).removeprefix("Metadata_").lower(): str(c) for c in table.columns if c.startswith("Metadata_")
    }
    controls = [columns[c] for c in _CONTROLS if c in columns]
    perturbation, control = [], []
    for site in table.to_dict("records"):
        kind = next((k for c in controls if (k := control_type(site[c]))), "")
        label = _label(site, columns)
        if not label and site.get("Metadata_solvent", ""):
            label, kind = site["Metadata_solvent"], kind or "negcon"
        perturbation.append(label)
        control.append(kind)
    return perturbation, control


def _label(site: Mapping[str, str], columns: Mapping[str, str]) -> str:
    def named(names: Sequence[str], blank: Sequence[str] = _BLANK) -> str:
        cells = (site[columns[n.lower()]] for n in names if n.lower() in columns)
        return next((cell for cell in cells if cell not in blank), "")

    sample, kind = named(("broad_sample",)), named(_MODALITIES).lower()
    is_gene = sample.startswith(("BRDN", "ccsb", "TRCN")) or any(word in kind for word in _GENE_MODALITIES)
    is_compound = not is_gene and (bool(named(_STRUCTURES)) or sample.startswith(("BRD-K", "BRD-A")))
    order = (*_STATED, *_COMPOUNDS, *_OTHERS) if is_compound else (*_STATED, *_GENES, *_COMPOUNDS, *_OTHERS)
    return named(order) or named(order, blank=("",))
