"""`camae` at the shell: thin commands over the public functions. Errors are one sentence and an exit code."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from camae.errors import CamaeError

app = typer.Typer(
    help="Channel-agnostic masked autoencoders for high-content microscopy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console()

Data = Annotated[str, typer.Argument(help="manifest (CSV, Parquet) or image folder")]
Incomplete = Annotated[str, typer.Option(help="sites that lack channels: 'error' or 'skip'")]
Pattern = Annotated[str | None, typer.Option(help="file-name pattern of a plain folder (named groups)")]


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything the demo writes")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(help="trainings to pool")] = 3,
    screen_seed: Annotated[int, typer.Option(help="another seed makes another screen")] = 2024,
) -> None:
    """Make a small screen, train, embed, align, recall and report: the whole product on a CPU."""
    from camae.reproduction.demo.run_demo import run_demo

    run_demo(out, seeds=seeds, screen_seed=screen_seed)


@app.command()
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="run folder; a run found there is continued")],
    model: Annotated[str | None, typer.Option(help="preset name")] = None,
    steps: Annotated[int | None, typer.Option(help="optimizer steps")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of training settings")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="any setting, e.g. --set lr=3e-4 --set model_options.decoder=small"),
    ] = None,
    resume: Annotated[bool, typer.Option(help="continue a run found in --out")] = True,
    incomplete: Incomplete = "error",
    pattern: Pattern = None,
) -> None:
    """Train a CA-MAE."""
    import camae

    values = parse_settings(settings or [])
    if steps is not None:
        values["steps"] = steps
    if model is not None:
        values["model"] = model
    run = camae.train(
        data, out=out, config=config, resume=resume, incomplete=incomplete, pattern=pattern, **values
    )
    _out.print(f"model: {run.path / 'model.safetensors'}")


@app.command()
def embed(
    data: Data,
    model: Annotated[str, typer.Option(help="run, checkpoint or model file")],
    out: Annotated[Path, typer.Option(help="output folder; a run found there is continued")],
    tiles: Annotated[str, typer.Option(help="'grid', 'cover' or 'center'")] = "grid",
    overlap: Annotated[
        float, typer.Option(help="least share that neighbors of 'cover' have in common")
    ] = 0.0,
    pool: Annotated[str, typer.Option(help="'mean', 'cls' or 'per_channel'")] = "mean",
    layers: Annotated[
        list[int] | None, typer.Option(help="encoder block to take outputs of (-1: the last); may repeat")
    ] = None,
    level: Annotated[str, typer.Option(help="'well' or 'site'")] = "well",
    value_range: Annotated[
        tuple[float, float] | None,
        typer.Option(help="lowest and highest possible value"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="'float32' or 'bfloat16'")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', 'cuda:1' ...; default a GPU if any")
    ] = None,
    linear: Annotated[
        str | None, typer.Option(help="encoder rewritten for speed: 'float32', 'bfloat16' or 'fp8' layers")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="with torch.compile")] = False,
    bag_of_channels: Annotated[
        bool, typer.Option("--bag-of-channels", help="each channel encoded alone: another embedding")
    ] = False,
    sites_per_shard: Annotated[int, typer.Option(help="sites of one file, written at once")] = 256,
    tokens_per_pass: Annotated[
        int | None, typer.Option(help="tokens computed at once; default by memory")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="which part of --world (torchrun, SLURM: found)")] = None,
    world: Annotated[int | None, typer.Option(help="processes that share the screen")] = None,
    ray_workers: Annotated[int, typer.Option(help="embed with so many Ray actors")] = 0,
    ray_gpus: Annotated[float, typer.Option(help="GPUs of each Ray actor")] = 0,
    anndata: Annotated[bool, typer.Option("--anndata", help="also write .h5ad")] = False,
    format: Annotated[str | None, typer.Option(help="reader of a folder, e.g. 'rxrx1', 'gallery'")] = None,
    incomplete: Incomplete = "error",
    pattern: Pattern = None,
    reader: Annotated[str | None, typer.Option(help="image back-end: 'native', 'tifffile', 'dali'")] = None,
) -> None:
    """Embed a screen to Parquet."""
    from camae.embedding.command import run_embed

    settings = {
        "tiles": tiles,
        "overlap": overlap,
        "pool": pool,
        "layers": layers or None,
        "level": level,
        "value_range": value_range,
        "dtype": dtype,
        "sites_per_shard": sites_per_shard,
        "tokens_per_pass": tokens_per_pass,
        "format": format,
        "incomplete": incomplete,
        "pattern": pattern,
        "reader": reader,
    }
    place = {"device": device, "rank": rank, "world": world}
    form = {"linear": linear, "compile": compile, "bag_of_channels": bag_of_channels}
    _out.print(run_embed(data, model, out, settings, place, form, ray_workers, ray_gpus, anndata))


@app.command("map")
def map_command(
    embeddings: Annotated[Path, typer.Argument(help="wells.parquet of `camae embed`")],
    pairs: Annotated[Path, typer.Argument(help="file or folder of known pairs, two columns of names each")],
    method: Annotated[str, typer.Option(help="alignment: none, center, standardize, pca, tvn ...")] = "tvn",
    out: Annotated[Path | None, typer.Option(help="CSV of the strongest relationships")] = None,
) -> None:
    """Align embeddings, relate perturbations, and recall known pairs."""
    from camae import maps
    from camae.files import write_text
    from camae.maps.perturbation_map import map_screen

    result = map_screen(embeddings, method)
    scores = maps.recall(result.vectors, result.names, maps.read_pairs_folder(pairs), bootstrap=1000)
    _out.print(scores.to_string())
    if out is not None:
        write_text(
            out, maps.strongest(result.vectors, result.names, count=1000, side="both").to_csv(index=False)
        )
        _out.print(f"strongest relationships: {out}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run folder")],
    out: Annotated[Path | None, typer.Option(help="HTML file")] = None,
) -> None:
    """Write the HTML report of a run folder."""
    import camae

    _out.print(str(camae.report(run, out)))


@app.command()
def benchmark(
    embeddings: Annotated[
        list[Path], typer.Argument(help="profile tables, one per model, of the same screen")
    ],
    out: Annotated[Path, typer.Option(help="results folder")],
    pairs: Annotated[Path | None, typer.Option(help="file or folder of known pairs")] = None,
    target: Annotated[str | None, typer.Option(help="column of targets, for sibling retrieval")] = None,
    arms: Annotated[Path | None, typer.Option(help="gene table of chromosome arms")] = None,
    expression: Annotated[Path | None, typer.Option(help="gene table of expression (zFPKM)")] = None,
    tvn: Annotated[bool, typer.Option(help="make Table 3: recall after TVN")] = True,
    arm_correction: Annotated[
        bool | None,
        typer.Option(help="a second row of Table 3, arms corrected [default: if both gene tables]"),
    ] = None,
    perturbation: Annotated[str, typer.Option(help="column of perturbations")] = "Metadata_Perturbation",
    plate: Annotated[str, typer.Option(help="column of plates, the batches")] = "Metadata_Plate",
    experiment: Annotated[str | None, typer.Option(help="column of experiments")] = None,
    control: Annotated[str, typer.Option(help="column that marks controls")] = "Metadata_control_type",
    negative: Annotated[str, typer.Option(help="its value for negative controls")] = "negcon",
    bootstrap: Annotated[int, typer.Option(help="resamples for standard errors")] = 200,
    seed: Annotated[int, typer.Option(help="of resamples and permutation nulls")] = 0,
    backend: Annotated[str, typer.Option(help="'numpy' or 'cupy'")] = "numpy",
) -> None:
    """The paper's Tables 2-4 and recall curves for one or more models."""
    from camae.reproduction.benchmark.run_benchmark import run_benchmark

    run_benchmark(
        embeddings,
        pairs,
        out,
        perturbation=perturbation,
        plate=plate,
        experiment=experiment,
        control=control,
        negative=negative,
        target=target,
        arms=arms,
        expression=expression,
        tvn=tvn,
        arm_correction=arm_correction,
        bootstrap=bootstrap,
        seed=seed,
        backend=backend,
    )
    _out.print(f"results: {out / 'benchmark.html'}")


@app.command()
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
    gene_sets: Annotated[Path | None, typer.Option(help="folder of gene lists (Table 5)")] = None,
    cellprofiler: Annotated[
        Path | None, typer.Option(help="CellProfiler features by well (Figure 6)")
    ] = None,
    target: Annotated[str | None, typer.Option(help="column of targets, for siblings (Table 4)")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="training setting of all systems")
    ] = None,
) -> None:
    """The paper's systems on one screen: its Tables 2-5 and Figures 2, 3, 5, 6."""
    from camae.reproduction.paper.run_paper import run_paper

    run_paper(
        data,
        out,
        systems=systems,
        size=size,
        quick=quick,
        checkpoints=checkpoints,
        pairs=pairs,
        weights=weights,
        channel_map=parse_settings(channel_map or []),
        gene_sets=gene_sets,
        cellprofiler=cellprofiler,
        target=target,
        recipe=parse_settings(settings or []),
    )


@app.command()
def pack(
    data: Data,
    out: Annotated[Path, typer.Option(help="folder of the packed screen; an unfinished one is continued")],
    codec: Annotated[str, typer.Option(help="'zstd' (256-pixel tiles) or 'none' (uncompressed)")] = "zstd",
    incomplete: Incomplete = "error",
    pattern: Pattern = None,
) -> None:
    """Rewrite a screen to crop-friendly TIFFs that any TIFF tool reads."""
    from camae.dataloader.screen_tools.pack import pack as pack_screen

    with _planes_bar("packing planes") as progress:
        result = pack_screen(_manifest(data, incomplete, pattern), out, codec, progress=progress)
    _out.print(f"{result}\nmanifest: {out / 'manifest.parquet'}")


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="released weights, a run folder, a checkpoint or a model file")
    ],
    destination: Annotated[Path, typer.Argument(help="safetensors file or folder to write")],
    bias_layout: Annotated[
        str | None, typer.Option(help="of released weights: 'timm<=1.0.24' (default) or 'mlp'")
    ] = None,
) -> None:
    """Write a model, released weights among them, as one safetensors file with its configuration."""
    from camae.model.convert import convert as convert_model

    changes = {} if bias_layout is None else {"bias_layout": bias_layout}
    _out.print(f"model: {convert_model(source, destination, **changes)}")


data_app = typer.Typer(help="Look at a screen before using it.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@data_app.command("check")
def data_check(
    data: Data,
    out: Annotated[Path | None, typer.Option(help="CSV of the problems")] = None,
    incomplete: Incomplete = "skip",
    pattern: Pattern = None,
) -> None:
    """Find missing, damaged, wrong-sized, saturated, constant and duplicate planes; exit code 1 if there are any."""
    from camae.dataloader.screen_tools.check import check
    from camae.files import write_text

    with _planes_bar("checking planes") as progress:
        problems = check(_manifest(data, incomplete, pattern), progress=progress)
    if out is not None:
        write_text(out, problems.to_csv(index=False))
    if problems.empty:
        _out.print("no problems found")
        return
    table = Table(*problems.columns, title=f"{len(problems)} problems")
    for row in problems.head(100).astype(str).itertuples(index=False):
        table.add_row(*row)
    _out.print(table)
    raise typer.Exit(1)


@data_app.command("plan")
def data_plan(
    data: Data,
    destination: Annotated[str, typer.Option(help="folder that the copy commands write to")] = ".",
    incomplete: Incomplete = "skip",
    pattern: Pattern = None,
) -> None:
    """Count files and GB of a screen, and print the commands that fetch what is not here."""
    from camae.dataloader.screen_tools.plan import plan

    result = plan(_manifest(data, incomplete, pattern), destination)
    _out.print(str(result))
    for command in result.commands:
        _out.print(command, soft_wrap=True)


runs_app = typer.Typer(help="Look at training runs.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


@runs_app.command("compare")
def runs_compare(
    runs: Annotated[list[Path], typer.Argument(help="run folders")],
    out: Annotated[Path | None, typer.Option(help="folder for compare.csv and curves.png")] = None,
) -> None:
    """Losses, speed and differing settings of runs, side by side."""
    from camae.training.compare import compare_runs

    found = compare_runs(runs, out)
    table = Table("quantity", *found.columns)
    for name, values in found.iterrows():
        table.add_row(str(name), *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values))
    _out.print(table)
    if out is not None:
        _out.print(f"{out / 'compare.csv'}\n{out / 'curves.png'}")


def _manifest(data: str, incomplete: str, pattern: str | None) -> Any:
    from camae.dataloader import read_manifest

    return read_manifest(data, incomplete=incomplete, pattern=pattern)


@contextmanager
def _planes_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A live bar fed by progress(done, total)."""
    with Progress(transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Print device, versions, and which back-end each op will use and why."""
    from camae.cli.doctor import examine

    findings = examine()
    if as_json:
        _out.print_json(json.dumps(findings))
        return
    for title, rows in findings.items():
        table = Table(title=title, title_justify="left", show_header=False)
        for name, value in rows.items():
            table.add_row(name, str(value))
        _out.print(table)


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`a.b=value` strings to nested settings; values are TOML, and plain words are strings."""
    import tomllib

    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise CamaeError(f"--set {pair}: write it as name=value")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        *parents, last = key.split(".")
        table = values
        for parent in parents:
            table = table.setdefault(parent, {})
        table[last] = value
    return values


_noted: set[str] = set()


def _note(message: Warning | str, *_: Any) -> None:
    """A warning as one line on stderr, once."""
    if str(message) not in _noted:
        _noted.add(str(message))
        Console(stderr=True, soft_wrap=True).print(f"[yellow]note:[/] {message}", highlight=False)


def main() -> None:
    """Entry point: user errors become one sentence on stderr and exit code 2."""
    warnings.showwarning = _note  # type: ignore[assignment]
    try:
        app()
    except CamaeError as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {error}", highlight=False, markup=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
