"""`camae demo`, `camae benchmark` and `camae paper`: the paper's tables and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Unpack

import typer

from camae.cli.console import say
from camae.cli.options import (
    Backend,
    Components,
    Control,
    Features,
    Method,
    Negative,
    NullDistribution,
    NullSize,
    Permutations,
    Perturbation,
    Plate,
    Profiles,
    RankingDistance,
    Reader,
    ShrinkageOption,
    Threshold,
    Unit,
    parse_components,
    parse_distance,
    parse_features,
    parse_null,
    parse_shrinkage,
    parse_unit,
    with_options,
)
from camae.cli.settings import parse_names, parse_settings
from camae.embedding.config import ReadKeywords, ReadOptions

Arms = Annotated[Path | None, typer.Option(help="gene table of chromosome arms (Table 3)")]
Expression = Annotated[Path | None, typer.Option(help="gene table of expression (zFPKM), for the arms")]
GeneSets = Annotated[Path | None, typer.Option(help="folder of gene lists (Table 5)")]
CellProfiler = Annotated[Path | None, typer.Option(help="CellProfiler features by well (Figure 6)")]
Condition = Annotated[
    list[str] | None,
    typer.Option(help="column that divides Table 4 (cell type, time), averaged over it; again for more"),
]
Modality = Annotated[
    str,
    typer.Option(
        help="'compound' (siblings by |cosine|), 'crispr', 'orf' (none), or the column that says so"
    ),
]


def demo(
    out: Annotated[Path, typer.Option(help="folder for everything the demo writes")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="trainings to pool")] = 1,
    screen_seed: Annotated[int, typer.Option(help="another seed makes another screen")] = 2024,
    screens: Annotated[
        int,
        typer.Option(help="screens to pool, up to 5, with seeds of their own; 1 is that of --screen-seed"),
    ] = 1,
    backend: Backend = "auto",
) -> None:
    """Make a small screen, train, embed, align, recall and report: the whole product on a CPU."""
    from camae.reproduction.demo.run_demo import run_demo

    run_demo(out, seeds=seeds, screen_seed=screen_seed, screens=screens, backend=backend)


def benchmark(
    embeddings: Profiles,
    out: Annotated[Path, typer.Option(help="results folder")],
    pairs: Annotated[Path | None, typer.Option(help="file or folder of known pairs")] = None,
    refchemdb_tier: Annotated[
        str, typer.Option(help="lowest confidence of RefChemDB's pairs, 'Tier0' (the highest) to 'Tier3'")
    ] = "Tier2",
    target: Annotated[str | None, typer.Option(help="column of targets, for sibling retrieval")] = None,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(
            help="table joined to the profiles by a column of both (targets, conditions), again for more"
        ),
    ] = None,
    condition: Condition = None,
    modality: Modality = "compound",
    arms: Arms = None,
    expression: Expression = None,
    gene_sets: GeneSets = None,
    cellprofiler: CellProfiler = None,
    features: Features = "known",
    tvn: Annotated[bool, typer.Option(help="make Table 3: recall after TVN")] = True,
    arm_correction: Annotated[
        bool | None,
        typer.Option(help="a second row of Table 3, arms corrected [default: if both gene tables]"),
    ] = None,
    perturbation: Perturbation = "Metadata_Perturbation",
    plate: Plate = "Metadata_Plate",
    experiment: Annotated[str | None, typer.Option(help="column of experiments")] = None,
    control: Control = "Metadata_control_type",
    negative: Negative = "negcon",
    unit: Unit = "well",
    components: Components = "half_controls",
    method: Method = "tvn",
    shrinkage: ShrinkageOption = None,
    null: NullDistribution = "auto",
    null_size: NullSize = 10_000,
    distance: RankingDistance = "cosine",
    threshold: Threshold = 0.05,
    permutations: Permutations = 1000,
    activity: Annotated[
        bool, typer.Option(help="make the tables of activity and calibration, seconds for 100 perturbations")
    ] = True,
    mechanism: Annotated[str | None, typer.Option(help="column of mechanisms of action")] = None,
    compound: Annotated[
        str | None, typer.Option(help="column of compounds, for mechanisms [default: perturbations]")
    ] = None,
    dose: Annotated[str | None, typer.Option(help="column of doses, for mechanisms")] = None,
    seed: Annotated[int, typer.Option(help="of permutation nulls and of the controls held out")] = 0,
    backend: Backend = "auto",
) -> None:
    """The paper's Tables 2 to 5 and recall curves, activity, calibration and mechanisms for one or more models."""
    from camae.maps.arrays import array_backend
    from camae.reproduction.benchmark.console_tables import console_tables
    from camae.reproduction.benchmark.run_benchmark import run_benchmark

    arrays = array_backend(backend)
    say(f"arrays: {arrays}")
    results = run_benchmark(
        embeddings,
        pairs,
        out,
        perturbation=perturbation,
        plate=plate,
        experiment=experiment,
        control=control,
        negative=negative,
        target=target,
        annotations=annotations or (),
        condition=condition or (),
        modality=modality,
        gene_sets=gene_sets,
        cellprofiler=cellprofiler,
        features=parse_features(features),
        arms=arms,
        expression=expression,
        refchemdb_tier=refchemdb_tier,
        tvn=tvn,
        arm_correction=arm_correction,
        unit=parse_unit(unit),
        components=parse_components(components),
        method=method,
        shrinkage=parse_shrinkage(shrinkage),
        null=parse_null(null),
        null_size=null_size,
        distance=parse_distance(distance),
        threshold=threshold,
        permutations=permutations,
        activity=activity,
        mechanism=mechanism,
        compound=compound,
        dose=dose,
        seed=seed,
        backend=arrays,
    )
    notes = results["notes"]
    assert isinstance(notes, dict)
    for line in dict.fromkeys(line for lines in notes.values() for line in lines):
        say(line)
    for text in console_tables(results):
        say(text)
    say(f"results: {out / 'benchmark.html'}")


@with_options(ReadOptions)
def paper(
    data: Annotated[str | None, typer.Argument(help="screen; a demo screen is made without it")] = None,
    out: Annotated[Path, typer.Option(help="results folder; a run found there is continued")] = Path(
        "camae-paper"
    ),
    systems: Annotated[
        list[str] | None, typer.Option("--system", help="name or family, again for more")
    ] = None,
    size: Annotated[str, typer.Option(help="'smallest' (two cores) or 'paper' (a GPU)")] = "smallest",
    quick: Annotated[bool, typer.Option(help="a few steps of every system, under 5 minutes")] = False,
    checkpoints: Annotated[str, typer.Option(help="'last', or 'all' saved steps as rows")] = "last",
    pairs: Annotated[Path | None, typer.Option(help="file or folder of known pairs")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="folder of ImageNet weights, named after timm's models")
    ] = None,
    channel_map: Annotated[
        list[str] | None, typer.Option(help="model's channel=image's channel, for models with weights")
    ] = None,
    gene_sets: GeneSets = None,
    cellprofiler: CellProfiler = None,
    target: Annotated[str | None, typer.Option(help="column of targets, for siblings (Table 4)")] = None,
    condition: Condition = None,
    modality: Modality = "compound",
    arms: Arms = None,
    expression: Expression = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="training setting of all systems")
    ] = None,
    tiles: Annotated[str, typer.Option(help="as of camae embed")] = "grid",
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="lowest and highest possible value of the images; needed for float images"),
    ] = None,
    reader: Reader = None,
    backend: Backend = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", help="only a line for each system")] = False,
    **reading: Unpack[ReadKeywords],
) -> None:
    """The paper's systems on one screen: its Tables 2-5 and Figures 2, 3, 5, 6."""
    from camae.reproduction.paper.run_paper import run_paper

    run_paper(
        *(data, out),
        systems=systems,
        size=size,
        quick=quick,
        checkpoints=checkpoints,
        pairs=pairs,
        weights=weights,
        channel_map=parse_names(channel_map, "--channel-map"),
        gene_sets=gene_sets,
        cellprofiler=cellprofiler,
        target=target,
        condition=condition or (),
        modality=modality,
        arms=arms,
        expression=expression,
        recipe=parse_settings(settings),
        tiles=tiles,
        value_range=value_range,
        reader=reader,
        backend=backend,
        quiet=quiet,
        reading=ReadOptions(**reading),
    )
