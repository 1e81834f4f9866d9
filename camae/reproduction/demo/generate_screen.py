"""Generator of the demo screen: images, load_data tables, plate maps and known pairs, as in Cell Painting Gallery."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tifffile

from camae.errors import CamaeError
from camae.files import is_running, output_errors, path_of
from camae.processors import usable_cpus
from camae.reproduction.demo.cells import sample_cells
from camae.reproduction.demo.optics import acquire
from camae.reproduction.demo.organelles import draw_site
from camae.reproduction.demo.screen_design import (
    COLUMNS,
    CONTROL,
    ROWS,
    design,
    plate_layout,
    stream,
    well_factors,
    well_name,
)
from camae.reproduction.demo.screen_parameters import CHANNEL_NUMBER, CHANNELS, FACTORS, ScreenParameters

PROJECT, SOURCE, BATCH = "cpg-demo", "source_1", "2026_01_05_Batch1"
_README = """\
A synthetic Cell Painting screen, drawn by camae (no real cells). Layout of the Cell Painting Gallery.

{project}/{source}/images/{batch}/images/<plate>__.../Images/   16-bit TIFF, one per channel and site:
    r<row>c<column>f<site>p01-ch<channel>sk1fk1fl1.tiff; channels {channels}
{project}/{source}/workspace/load_data_csv/{batch}/<plate>/load_data.csv   one row per site: file names by channel;
    PathName_Orig* is relative to the folder that holds this README
{project}/{source}/workspace/metadata/platemaps/{batch}/barcode_platemap.csv   which plate map belongs to which plate
{project}/{source}/workspace/metadata/platemaps/{batch}/platemap/<map>.txt     what is in each well
    (control_type: negcon = negative control)
relationships/demo_pairs.csv   pairs of perturbations that are truly related (the answer to be recovered)
screen.json                    the generator's parameters

{plates} plates x {wells} wells x {sites} sites; {perturbations} perturbations, one well per plate each; the other wells
are negative controls. Plates differ in staining, focus, light and cell state, as real ones do.
"""


def plate_name(plate: int) -> str:
    """Barcode of a plate: `CD00001`, `CD00002`, ..."""
    return f"CD{plate + 1:05d}"


def render_site(
    parameters: ScreenParameters, plate: int, well: int, site: int
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float64]]:
    """Render one site.

    Returns the five planes in `CHANNELS` order, (5, size, size) uint16, and the mean factor values of the cells
    inside the field, (12,): the ground truth.
    """
    content = plate_layout(parameters, plate)[well]
    effect_F = design(parameters).effect_PF[content] if content >= 0 else np.zeros(len(FACTORS))
    factors_F = well_factors(parameters, plate, well, effect_F)
    rng = stream(parameters.seed, 7, plate, well, site)
    cells = sample_cells(rng, factors_F, parameters)
    planes_CHW = acquire(draw_site(rng, cells, parameters), parameters, plate, well, site)
    shown_N = cells.visible_N if cells.visible_N.any() else slice(None)
    return planes_CHW, cells.factors_NF[shown_N].mean(axis=0, dtype=np.float64)


def _image_folder(plate: int) -> str:
    measurement = f"{plate_name(plate)}__2026-01-05T00_00_00-Measurement1"
    return f"{PROJECT}/{SOURCE}/images/{BATCH}/images/{measurement}/Images/"


def _file_name(well: int, site: int, channel: str) -> str:
    row, column = divmod(well, COLUMNS)
    return f"r{row + 1:02d}c{column + 1:02d}f{site + 1:02d}p01-ch{CHANNEL_NUMBER[channel]}sk1fk1fl1.tiff"


def _write_well(root: Path, parameters: ScreenParameters, plate: int, well: int) -> None:
    folder = root / _image_folder(plate)
    for site in range(parameters.sites):
        planes_CHW, _ = render_site(parameters, plate, well, site)
        for name, plane_HW in zip(CHANNELS, planes_CHW):
            tifffile.imwrite(
                folder / _file_name(well, site, name),
                plane_HW,
                photometric="minisblack",
                rowsperstrip=min(64, parameters.size),
                metadata=None,
                software="camae demo",
            )


def _load_data_rows(parameters: ScreenParameters, plate: int) -> Iterable[dict[str, str]]:
    for well in range(ROWS * COLUMNS):
        for site in range(parameters.sites):
            yield {
                "Metadata_Source": SOURCE,
                "Metadata_Batch": BATCH,
                "Metadata_Plate": plate_name(plate),
                "Metadata_Well": well_name(well),
                "Metadata_Site": str(site + 1),
                **{f"FileName_Orig{name}": _file_name(well, site, name) for name in CHANNELS},
                **{f"PathName_Orig{name}": _image_folder(plate) for name in CHANNELS},
            }


def _write_table(path: Path, rows: Iterable[dict[str, str]], delimiter: str = ",") -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _write_tables(root: Path, parameters: ScreenParameters) -> None:
    screen = design(parameters)
    workspace = root / PROJECT / SOURCE / "workspace"
    platemaps = workspace / "metadata" / "platemaps" / BATCH
    barcodes = []
    for plate in range(parameters.plates):
        name, map_name = plate_name(plate), f"DEMO-map-{plate + 1}"
        barcodes.append({"Assay_Plate_Barcode": name, "Plate_Map_Name": map_name})
        _write_table(
            workspace / "load_data_csv" / BATCH / name / "load_data.csv", _load_data_rows(parameters, plate)
        )
        wells = [
            {
                "well_position": well_name(well),
                "perturbation": screen.names[content] if content >= 0 else CONTROL,
                "control_type": "" if content >= 0 else "negcon",
            }
            for well, content in enumerate(plate_layout(parameters, plate))
        ]
        _write_table(platemaps / "platemap" / f"{map_name}.txt", wells, "\t")
    _write_table(platemaps / "barcode_platemap.csv", barcodes)
    pairs = [{"perturbation_a": a, "perturbation_b": b} for a, b in screen.pairs]
    _write_table(root / "relationships" / "demo_pairs.csv", pairs)
    readme = _README.format(
        project=PROJECT,
        source=SOURCE,
        batch=BATCH,
        channels=", ".join(f"{number} {name}" for name, number in CHANNEL_NUMBER.items()),
        plates=parameters.plates,
        wells=ROWS * COLUMNS,
        sites=parameters.sites,
        perturbations=len(screen.names),
    )
    (root / "README.txt").write_text(readme, encoding="utf-8")
    (root / "screen.json").write_text(json.dumps(asdict(parameters), indent=1) + "\n", encoding="utf-8")


def _write_images(
    root: Path, parameters: ScreenParameters, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    jobs = [(plate, well) for plate in range(parameters.plates) for well in range(ROWS * COLUMNS)]
    for plate in range(parameters.plates):
        (root / _image_folder(plate)).mkdir(parents=True)
    plates, wells = zip(*jobs)
    roots, settings = [root] * len(jobs), [parameters] * len(jobs)
    if workers == 1:
        done: Iterable[None] = map(_write_well, roots, settings, plates, wells)
        _count(done, len(jobs), progress)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            _count(pool.map(_write_well, roots, settings, plates, wells, chunksize=8), len(jobs), progress)
    except BrokenProcessPool as error:
        raise CamaeError(
            "a process that draws the demo screen ended; in a script call this below `if __name__ == '__main__':`, "
            "or draw with workers=1"
        ) from error


def _count(done: Iterable[None], total: int, progress: Callable[[int, int], None] | None) -> None:
    for number, _ in enumerate(done, 1):
        if progress is not None:
            progress(number, total)


def generate(
    out: str | os.PathLike[str],
    *,
    plates: int = 3,
    sites: int = 2,
    size: int = 256,
    seed: int = 2024,
    progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> Path:
    """Write the demo screen into `out` and return that folder.

    The same arguments give the same bytes on every run, whatever `workers` is (default: one process per core).
    `progress(done, total)` is called after every well. A folder that already holds this very screen is kept;
    one that holds anything else raises `CamaeError`. The folder appears only when complete.
    """
    out = path_of(out, "out")
    if min(plates, sites) < 1 or size < 64:
        raise CamaeError(
            f"a demo screen needs at least 1 plate, 1 site and 64 pixels, got {plates}, {sites}, {size}"
        )
    parameters = replace(ScreenParameters(), plates=plates, sites=sites, size=size, seed=seed)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _holds(out, parameters):
            return out
        raise CamaeError(f"{out} already holds other files; give an empty or new folder for the demo screen")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    _remove_unfinished_screens(out)
    try:
        with output_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            _write_images(partial, parameters, workers or usable_cpus(), progress)
            _write_tables(partial, parameters)
            if out.exists():
                out.rmdir()
            partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _remove_unfinished_screens(out: Path) -> None:
    """Remove what killed runs left of the screen `out`; that of a run which is still at work stays."""
    for path in out.parent.glob(f".{out.name}.*.partial"):
        pid = path.name.removesuffix(".partial").rpartition(".")[2]
        if pid.isdigit() and not is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _holds(out: Path, parameters: ScreenParameters) -> bool:
    record = out / "screen.json"
    if not record.is_file():
        return False
    wanted = json.loads(json.dumps(asdict(parameters)))
    return bool(json.loads(record.read_text(encoding="utf-8")) == wanted)
