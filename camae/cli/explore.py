"""`camae explore`: a perturbation map as a page to search and see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camae.cli.console import say
from camae.cli.options import (
    Components,
    Control,
    Negative,
    Perturbation,
    Plate,
    Unit,
    parse_components,
    parse_unit,
)

Results = Annotated[
    list[str],
    typer.Argument(
        help="folder that `camae embed` wrote, or profiles (CSV, TSV, Parquet, AnnData); several are one screen "
        "where their plates differ, else a model each; name=path says which model one is of"
    ),
]
Images = Annotated[
    str | None,
    typer.Option(help="manifest (CSV, Parquet) or image folder that was embedded, for thumbnails"),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="folder to write, or without images a file that ends in .html; default: the folder explore beside "
        "the first profiles"
    ),
]


def explore(
    results: Results,
    images: Images = None,
    variant: Annotated[
        str | None,
        typer.Option(help="of JUMP-lite's images: 'zstd', 'hq', 'mq', 'd20', or the path of a store"),
    ] = None,
    out: Out = None,
    pairs: Annotated[Path | None, typer.Option(help="file or folder of known pairs")] = None,
    dose: Annotated[str | None, typer.Option(help="column of doses, numbers in one unit")] = None,
    title: Annotated[str | None, typer.Option(help="of the page")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="two dimensions: 'pca', 'umap', or 'auto': PCA, and UMAP where umap-learn is installed"
        ),
    ] = "auto",
    wells: Annotated[int, typer.Option(help="thumbnails of each perturbation")] = 3,
    controls: Annotated[int, typer.Option(help="thumbnails of the controls of each plate")] = 2,
    size: Annotated[int, typer.Option(help="side of a thumbnail, px")] = 160,
    crop: Annotated[
        int, typer.Option(help="side of the square in the middle of a site that is shown, px; 0: the largest")
    ] = 512,
    method: Annotated[str, typer.Option(help="alignment: none, center, standardize, pca, tvn ...")] = "tvn",
    perturbation: Perturbation = "Metadata_Perturbation",
    plate: Plate = "Metadata_Plate",
    control: Control = "Metadata_control_type",
    negative: Negative = "negcon",
    unit: Unit = "well",
    components: Components = "half_controls",
) -> None:
    """Write a perturbation map as a page to search, see and compare, which needs no network."""
    from camae import reporting
    from camae.reporting.explorer.api import located
    from camae.reproduction.benchmark.model_files import profiles_by_model

    named = [_model_and_path(item) for item in results]
    files = [(model, str(located(path))) for model, path in named]
    page = reporting.explore(
        profiles_by_model([model + path for model, path in files], plate or None),
        images,
        out or Path(files[0][1]).parent / "explore",
        variant=variant,
        pairs=pairs,
        dose=dose,
        title=title,
        layout=layout,
        wells=wells,
        controls=controls,
        size=size,
        crop=crop,
        method=method,
        perturbation=perturbation,
        plate=plate or None,
        control=control,
        negative=negative,
        unit=parse_unit(unit),
        components=parse_components(components),
    )
    say(page)


def _model_and_path(item: str) -> tuple[str, str]:
    """Text `model=` and the path of an argument; "" where it names no model."""
    model, equals, path = item.partition("=")
    return (model + equals, path) if equals and not Path(item).exists() else ("", item)
