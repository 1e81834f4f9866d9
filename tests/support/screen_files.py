"""Small screens on disk, as labs name and describe them, for the tests of readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import tifffile

from camae.dataloader import Manifest
from camae.dataloader.read_pixels import read_site


def write(path: Path, value: int = 1, **options: object) -> None:
    """A plane of 16x16 gray values that differ, the first being `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, (np.arange(256).reshape(16, 16) + value).astype(np.uint16), metadata=None, **options
    )


def first_pixels(manifest: Manifest, row: int = 0) -> list[int]:
    return read_site(manifest, row)[0][:, 0, 0].tolist()


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def manifest_of(rows: list[dict[str, str]]) -> Manifest:
    return Manifest(pd.DataFrame(rows))


def load_data(root: Path, plate: str, folder: str, extra: str = "", header: str = "") -> Path:
    return table(
        root / "workspace/load_data_csv/B1" / plate / "load_data.csv",
        f"Metadata_Plate,Metadata_Well,Metadata_Site,FileName_OrigDNA,PathName_OrigDNA{header}\n"
        f"{plate},A1,1,r01c01f01.tiff,{folder}{extra}\n",
    )


def platemap(root: Path, text: str, barcodes: str = "Assay_Plate_Barcode,Plate_Map_Name\nPL1,map\n") -> Path:
    folder = root / "workspace/metadata/platemaps/B1"
    table(folder / "barcode_platemap.csv", barcodes)
    return table(folder / "platemap/map.txt", text)


def mixed_table(path: Path, plates: str = "PPQ") -> Path:
    cells = ["a.tif,b.tif", "c.tif,", "d.tif,"]
    rows = "".join(f"{p},A0{i + 1},{c}\n" for i, (p, c) in enumerate(zip(plates, cells, strict=True)))
    for name in "abcd":
        write(path.parent / f"{name}.tif")
    return table(path, f"Metadata_Plate,Metadata_Well,DNA,ER\n{rows}")
