"""Platemaps of the Cell Painting Gallery: perturbations joined by plate and well."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from camae.dataloader.datasets.common import control_type, normal_well
from camae.text_table import read_text_table

# What a platemap or its external metadata calls the perturbation, the most readable first.
_NAMES = (
    "perturbation",
    "Metadata_Perturbation",
    "gene",
    "gene_name",
    "Metadata_Symbol",
    "pert_iname",
    "Metadata_Name",
    "compound",
    "treatment",
    "broad_sample",
    "Metadata_broad_sample",
    "Metadata_JCP2022",
    "JCP2022",
)
_CONTROLS = ("control_type", "Metadata_control_type", "pert_type", "Metadata_pert_type", "well_type")


def with_platemaps(meta: pd.DataFrame, workspace: Path, file: Path) -> pd.DataFrame:
    """Platemap join: `meta` of one load_data table with Metadata_Perturbation and Metadata_control_type filled in.

    Reads `workspace/metadata/platemaps/<batch>/barcode_platemap.csv` and `platemap/<name>.txt`, then
    `workspace/metadata/external_metadata/*.{tsv,csv}` by broad_sample. Without them the columns the
    table itself has are used.
    """
    table = meta.copy()
    wells = table["Metadata_Well"].map(normal_well)
    for batch in dict.fromkeys(table["Metadata_Batch"]):
        folder = workspace / "metadata" / "platemaps" / batch
        if not (folder / "barcode_platemap.csv").is_file():
            continue
        barcodes = read_text_table(folder / "barcode_platemap.csv")
        plates = dict(zip(barcodes["Assay_Plate_Barcode"], barcodes["Plate_Map_Name"], strict=True))
        for plate in dict.fromkeys(table.loc[table["Metadata_Batch"] == batch, "Metadata_Plate"]):
            if plate not in plates:
                continue
            layout = _platemap(folder / "platemap", plates[plate], workspace)
            here = (table["Metadata_Batch"] == batch) & (table["Metadata_Plate"] == plate)
            for column in layout.columns:
                values = wells[here].map(layout[column]).fillna("")
                name = column if column.startswith("Metadata_") else f"Metadata_{column}"
                table.loc[here, name] = values
    table = table.fillna("")
    perturbation, control = perturbations(table)
    return table.assign(Metadata_Perturbation=perturbation, Metadata_control_type=control)


def _platemap(folder: Path, name: str, workspace: Path) -> pd.DataFrame:
    """One platemap indexed by well, external metadata joined by broad_sample."""
    layout = read_text_table(next(p for p in (folder / f"{name}.txt", folder / f"{name}.tsv") if p.is_file()))
    well = next(c for c in ("well_position", "well", "Well", "Metadata_Well") if c in layout)
    layout.index = pd.Index(layout.pop(well).map(normal_well))
    external = workspace / "metadata" / "external_metadata"
    for file in sorted(external.glob("*.[ct]sv")) if "broad_sample" in layout else ():
        extra = read_text_table(file)
        if "broad_sample" in extra:
            extra = extra.drop_duplicates("broad_sample").set_index("broad_sample")
            for column in extra.columns.difference(layout.columns, sort=False):
                layout[column] = layout["broad_sample"].map(extra[column]).fillna("")
    return layout[~layout.index.duplicated()]


def perturbations(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Perturbation and control type of every row, from the columns that name them.

    A well whose sample is empty and whose solvent is named is a negative control of that name (Gallery
    platemaps leave broad_sample blank for DMSO).
    """

    def columns(names: tuple[str, ...]) -> list[str]:
        wanted = [n if n.startswith("Metadata_") else f"Metadata_{n}" for n in names]
        return [c for c in dict.fromkeys(wanted) if c in table]

    names, controls = columns(_NAMES), columns(_CONTROLS)
    perturbation, control = [], []
    for site in table.to_dict("records"):
        kind = next((k for c in controls if (k := control_type(site[c]))), "")
        label = next((site[c] for c in names if site[c] not in ("", "NA", "nan")), "")
        if not label and site.get("Metadata_solvent", ""):
            label, kind = site["Metadata_solvent"], kind or "negcon"
        perturbation.append(label)
        control.append(kind)
    return perturbation, control
