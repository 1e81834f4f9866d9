"""`camae map`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from camae.cli.console import say, say_left_out
from camae.cli.options import (
    Backend,
    Components,
    Control,
    Method,
    Negative,
    Perturbation,
    Plate,
    Profiles,
    ShrinkageOption,
    Unit,
    parse_components,
    parse_shrinkage,
    parse_unit,
)


def map_screen(
    profiles: Profiles,
    pairs: Annotated[Path, typer.Argument(help="file or folder of known pairs, two columns of names each")],
    method: Method = "tvn",
    shrinkage: ShrinkageOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="CSV of the strongest relationships; what was left out goes beside it"),
    ] = None,
    perturbation: Perturbation = "Metadata_Perturbation",
    plate: Plate = "Metadata_Plate",
    control: Control = "Metadata_control_type",
    negative: Negative = "negcon",
    unit: Unit = "well",
    components: Components = "half_controls",
    backend: Backend = "auto",
    escape_formulas: Annotated[
        bool, typer.Option(help="make cells harmless that a spreadsheet would run as formulas")
    ] = False,
) -> None:
    """Align embeddings, relate perturbations, and recall known pairs."""
    import pandas as pd

    from camae import maps
    from camae.maps import perturbation_map
    from camae.maps.arrays import array_backend
    from camae.omissions import Omissions
    from camae.reproduction.benchmark.run_benchmark import profiles_by_model
    from camae.text_table import write_csv

    arrays = array_backend(backend)
    say(f"arrays: {arrays}")
    strength = parse_shrinkage(shrinkage)
    options = {} if strength is None else {"shrinkage": strength}
    pairs_left_out, left_out = Omissions(), Omissions()
    models = profiles_by_model(profiles, plate or None)
    known = maps.read_pairs_folder(pairs, pairs_left_out)
    strongest = []
    for model, table in models.items():
        result = perturbation_map.map_screen(
            table,
            method,
            perturbation=perturbation,
            plate=plate or None,
            control=control,
            negative=negative,
            unit=parse_unit(unit),
            components=parse_components(components),
            backend=arrays,
            **options,
        )
        left_out.extend(table.omitted)
        for line in [*result.notes, *([f"{model}:"] if len(models) > 1 else [])]:
            say(line)
        say(maps.recall(result.vectors, result.names, known, interval=True).to_string())
        found = maps.strongest(result.vectors, result.names, count=1000, side="both")
        strongest.append(found.assign(model=model) if len(models) > 1 else found)
    say_left_out(pairs_left_out)
    if out is not None:
        write_csv(out, pd.concat(strongest, ignore_index=True), escape_formulas)
        left_out.extend(pairs_left_out)
        left_out.write(out.parent, f"{out.stem}.left_out.csv")
        say(f"strongest relationships: {out}")
