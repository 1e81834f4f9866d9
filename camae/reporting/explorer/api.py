"""Writer of the explorer: profiles, known pairs and images in, one folder or one HTML file out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.errors import CamaeError, MissingFileError
from camae.files import path_of, write_text
from camae.maps.pairs import PairSources, read_pairs_folder
from camae.maps.perturbation_map import Components
from camae.maps.profiles import ProfileTable
from camae.maps.replicates import ReplicateUnit
from camae.maps.screens import Profiles, Screen, ScreenColumns, read_screen
from camae.omissions import Omissions
from camae.reporting.explorer.layout import check_layout
from camae.reporting.explorer.model_map import model_map
from camae.reporting.explorer.page import page
from camae.reporting.explorer.thumbnails import (
    FOLDER,
    Thumbnail,
    ThumbnailOptions,
    choose_wells,
    draw_thumbnails,
)

INDEX = "index.html"


def explore(
    results: Profiles | Mapping[str, Profiles],
    images: Manifest | str | Path | None = None,
    out: str | Path | None = None,
    *,
    variant: str | Path | None = None,
    pairs: PairSources | str | Path | None = None,
    dose: str | None = None,
    title: str | None = None,
    layout: str = "auto",
    wells: int = 3,
    controls: int = 2,
    size: int = 160,
    crop: int = 512,
    method: str = "tvn",
    perturbation: str = "Metadata_Perturbation",
    plate: str | None = "Metadata_Plate",
    control: str = "Metadata_control_type",
    negative: str = "negcon",
    unit: ReplicateUnit = "well",
    components: Components = "half_controls",
) -> Path:
    """Write a perturbation map as a page to explore, and return the path of its HTML file.

    results: profiles of wells as `maps.map_screen` takes them, or the folder that `camae embed` wrote; a dict of
        these by model, between which the page switches and whose recall stands side by side, the first shown first.
    images: manifest (or image folder) that was embedded: thumbnails of the first model's wells are drawn from it.
    variant: of JUMP-lite's images, where they are named by its site index (see `camae.dataloader.read_manifest`).
    out: folder to write, with index.html and the thumbnails; or, without images, a file that ends in .html. None: the
        folder `explore` beside the first profiles.
    pairs: known pairs, or their file or folder: marked on the page, and recall is computed from them.
    dose: column of doses, numbers in one unit. title: of the page. layout: two dimensions, "pca", "umap", or "auto":
        PCA, and UMAP where umap-learn is installed. wells, controls: thumbnails of each perturbation, and of the
        controls of each plate. size, crop: side of a thumbnail, and of the square in the middle of a site that it
        shows, px (0: the largest).
    method, perturbation, plate, control, negative, unit, components: as in `maps.map_screen`.

    What was left out is counted by warnings and on the page, and listed in left_out.csv beside it. Raises CamaeError
    for unusable profiles, options or images, MissingFileError when a file does not exist, MissingBackendError when UMAP
    is asked for and not installed, OutputError when an output cannot be written.
    """
    check_layout(layout)
    options = ThumbnailOptions(wells, controls, size, crop)
    models = results if isinstance(results, Mapping) else {"map": results}
    models = {name: located(table) for name, table in models.items()}
    if not models:
        raise CamaeError("there is nothing to explore: name at least one profile file")
    target, left_out = _target(out, next(iter(models.values())), images is not None), Omissions()
    known = read_pairs_folder(pairs, left_out) if isinstance(pairs, str | Path) else pairs
    columns = ScreenColumns(perturbation, plate, control, negative)
    screens = {name: read_screen(table, columns, unit) for name, table in models.items()}
    shown = [model_map(name, s, method, components, layout, dose, known) for name, s in screens.items()]
    for screen in screens.values():
        left_out.extend(screen.omitted)
    sites = None if images is None else read_manifest(images, incomplete="keep", variant=variant)
    thumbnails = _thumbnails(sites, next(iter(screens.values())), options, target, left_out)
    about = {"alignment": method, "unit": unit or "none", "title": title or "Map of perturbations"}
    _write(target, page(shown, known, thumbnails, options.size, about, left_out.lines()), left_out)
    return target


def _write(target: Path, text: str, left_out: Omissions) -> None:
    """Write the page, and what was left out beside it, which warnings say too."""
    write_text(target, text)
    for line in left_out.lines():
        warnings.warn(f"{target}: {line}", stacklevel=3)
    left_out.write(target.parent, "left_out.csv" if target.name == INDEX else f"{target.stem}.left_out.csv")


def _thumbnails(
    manifest: Manifest | None,
    screen: Screen,
    options: ThumbnailOptions,
    target: Path,
    left_out: Omissions,
) -> list[Thumbnail]:
    """Thumbnails of a screen's wells, drawn beside the page; none without images."""
    if manifest is None:
        return []
    chosen = choose_wells(screen, manifest, options, left_out)
    target.unlink(missing_ok=True)  # it would show the new thumbnails beside its old names
    return draw_thumbnails(chosen, manifest, target.parent / FOLDER, options, left_out)


def located(profiles: Profiles) -> Profiles:
    """Profiles, or the table of wells in the folder that `camae embed` wrote.

    Raises MissingFileError for a folder without one.
    """
    if not isinstance(profiles, str | Path) or not Path(profiles).is_dir():
        return profiles
    path = Path(profiles) / "wells.parquet"
    if not path.is_file():
        raise MissingFileError(
            f"{profiles}: the folder has no wells.parquet; name a folder that camae embed wrote, or a profile file"
        )
    return path


def _target(out: str | Path | None, first: Profiles, with_images: bool) -> Path:
    """The HTML file to write."""
    if out is None:
        source = first.source if isinstance(first, ProfileTable) else first
        source = source[0] if isinstance(source, list | tuple) and source else source
        if not isinstance(source, str | Path) or not Path(source).exists():
            raise CamaeError(
                "out= is missing: name the folder to write, because the profiles come from no file"
            )
        return Path(source).parent / "explore" / INDEX
    target = path_of(out, "out")
    if target.suffix.lower() not in (".html", ".htm"):
        return target / INDEX
    if with_images:
        raise CamaeError(
            f"{out}: thumbnails need a folder beside the page; name a folder, or leave the images out"
        )
    return target
