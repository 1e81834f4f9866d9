"""`camae map`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from camae.cli.console import say, say_left_out
from camae.cli.options import (
    Backend,
    Components,
    Control,
    Features,
    Method,
    Negative,
    Permutations,
    Perturbation,
    Plate,
    Profiles,
    RankingDistance,
    ShrinkageOption,
    Threshold,
    Unit,
    parse_components,
    parse_distance,
    parse_features,
    parse_shrinkage,
    parse_unit,
)
from camae.errors import CamaeError
from camae.files import check_outputs

if TYPE_CHECKING:
    from camae.maps.arrays import ArrayBackend
    from camae.maps.distances import Distance
    from camae.maps.pairs import PairSources
    from camae.maps.perturbation_map import Components as ComponentsOption
    from camae.maps.perturbation_map import ScreenMap
    from camae.maps.replicates import ReplicateUnit


class _Screen(TypedDict):
    """Options of `maps.map_screen` and `maps.screen_activity`."""

    perturbation: str
    plate: str | None
    control: str
    negative: str
    unit: ReplicateUnit
    components: ComponentsOption
    backend: ArrayBackend


class _Activity(TypedDict):
    """Options of `maps.screen_activity` alone."""

    distance: Distance
    threshold: float
    permutations: int
    seed: int


def map_screen(
    ctx: typer.Context,
    profiles: Profiles,
    pairs: Annotated[Path, typer.Argument(help="file or folder of known pairs, two columns of names each")],
    features: Features = "known",
    method: Method = "tvn",
    shrinkage: ShrinkageOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="CSV of the strongest relationships; what was left out goes beside it"),
    ] = None,
    activity: Annotated[
        Path | None,
        typer.Option(
            help="CSV of each perturbation's activity by average precision, Mahalanobis and energy distance, with half "
            "of the controls held out from the alignment"
        ),
    ] = None,
    distance: RankingDistance = "cosine",
    threshold: Threshold = 0.05,
    permutations: Permutations = 1000,
    seed: Annotated[int, typer.Option(help="of permutations and of the controls held out")] = 0,
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
    """Align embeddings, relate perturbations, recall known pairs, and say which perturbations are active."""
    import pandas as pd

    from camae import maps
    from camae.maps import perturbation_map
    from camae.maps.arrays import array_backend
    from camae.omissions import Omissions
    from camae.reproduction.benchmark.model_files import model_and_file, profiles_by_model
    from camae.text_table import write_csv

    tests = _activity_options(ctx, activity, distance, threshold, permutations, seed)
    read = [model_and_file(item)[1] for item in profiles]
    read += sorted(pairs.iterdir()) if pairs.is_dir() else [pairs]
    check_outputs([path for path in (out, activity) if path is not None], ".csv", read)
    arrays = array_backend(backend)
    say(f"arrays: {arrays}")
    strength = parse_shrinkage(shrinkage)
    options = {} if strength is None else {"shrinkage": strength}
    pairs_left_out, left_out = Omissions(), Omissions()
    models = profiles_by_model(profiles, plate or None, parse_features(features))
    known = maps.read_pairs_folder(pairs, pairs_left_out)
    shared: _Screen = {
        "perturbation": perturbation,
        "plate": plate or None,
        "control": control,
        "negative": negative,
        "unit": parse_unit(unit),
        "components": parse_components(components),
        "backend": arrays,
    }
    strongest, active = [], []
    several = len(models) > 1
    for model, table in models.items():
        result = perturbation_map.map_screen(table, method, **shared, **options)
        left_out.extend(table.omitted)
        for line in [*result.notes, *([f"{model}:"] if several else [])]:
            say(line)
        _say_recall(result, known, seed)
        found = maps.strongest(result.vectors, result.names, count=1000, side="both")
        strongest.append(found.assign(model=model) if several else found)
        if activity is not None:
            each = maps.screen_activity(table, method, **shared, **tests, **options)
            say(maps.activity_agreement(each).to_string(index=False))
            active.append(each.assign(model=model) if several else each)
    say_left_out(pairs_left_out)
    if activity is not None:
        write_csv(activity, pd.concat(active, ignore_index=True), escape_formulas)
        say(f"activity: {activity}")
    if out is not None:
        write_csv(out, pd.concat(strongest, ignore_index=True), escape_formulas)
        left_out.extend(pairs_left_out)
        left_out.write(out.parent, f"{out.stem}.left_out.csv")
        say(f"strongest relationships: {out}")


def _activity_options(
    ctx: typer.Context,
    activity: Path | None,
    distance: str,
    threshold: float,
    permutations: int,
    seed: int,
) -> _Activity:
    """Options of activity. Raises CamaeError for values that cannot be, or that would be ignored without --activity."""
    from camae.maps.activity import check_activity_options

    check_activity_options(threshold, permutations, seed)
    for name in ("distance", "threshold", "permutations"):
        source = ctx.get_parameter_source(name)
        if activity is None and source is not None and source.name == "COMMANDLINE":
            raise CamaeError(
                f"--{name} is an option of activity, which is not computed here; give --activity a file as well, or "
                f"leave --{name} out"
            )
    return {
        "distance": parse_distance(distance),
        "threshold": threshold,
        "permutations": permutations,
        "seed": seed,
    }


def _say_recall(result: ScreenMap, known: PairSources, seed: int) -> None:
    """Recall of known pairs, and a line for each source whose replicate counts confound it."""
    from camae import maps

    say(maps.recall(result.vectors, result.names, known, interval=True).to_string())
    matched = maps.matched_recall(result.vectors, result.names, result.replicates, known, seed=seed)
    for line in maps.replicate_warnings(matched):
        say(line)
