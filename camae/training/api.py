"""`camae.train`: trains a model from data and settings, and returns the run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from camae.dataloader.mixture import Source
from camae.errors import CamaeError
from camae.files import output_folder
from camae.locks import writing
from camae.model.backends import Backends
from camae.model.interface import Model
from camae.omissions import Omissions
from camae.training.callbacks import Callback, PictureCallback, ProbeCallback
from camae.training.config import TrainConfig, resolve
from camae.training.data import Data, open_data, split_data
from camae.training.distributed import World
from camae.training.evaluation import CenterCrops, Probe
from camae.training.run_log import LogRow, read_log
from camae.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = TypeVar("Function", bound=Callable[..., object])


@dataclass(frozen=True, repr=False)
class Run:
    """A training run that has finished. A notebook shows its numbers and its loss curve.

    path: its folder. model: the trained model, in eval mode. history: rows of log.jsonl. left_out, notes: what reading
    the data left out, and the rows that its joins matched.
    """

    path: Path
    model: Model
    history: list[LogRow]
    left_out: Omissions = field(default_factory=Omissions)
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        facts = ", ".join(f"{name} {value}" for name, value in self._facts().items())
        return f"Run({str(self.path)!r}: {facts})"

    def _facts(self) -> dict[str, str]:
        """Model, and the last numbers of the log."""
        facts = {"model": self.model.config.name}
        if self.history:
            facts["step"] = f"{int(self.history[-1]['step']):,}"
        for name, key in (("loss", "loss"), ("held-out loss", "val_loss"), ("crops/s", "crops_per_second")):
            values = [row[key] for row in self.history if row.get(key) is not None]
            if values:
                facts[name] = f"{values[-1]:.4g}"
        return facts

    def curves(self, *others: Run, y: str = "loss") -> Figure:
        """Figure of a number of the log against the steps, logarithmic, of this run and others.

        y: a column of log.jsonl; where its held-out form ("val_loss") is there too, it is dashed.
        Raises CamaeError for a run without a logged step, or a log without that column.
        """
        from camae.reporting.figures import loss_curves

        runs = [self, *others]
        if empty := [run.path for run in runs if not run.history]:
            raise CamaeError(f"{empty[0]}: the run has no logged step, so it has no curve")
        names = [run.path.resolve().name for run in runs]
        if len(set(names)) < len(names):
            names = [str(run.path) for run in runs]
        return loss_curves({name: run.history for name, run in zip(names, runs, strict=True)}, y=y)

    def _repr_html_(self) -> str:
        from camae.reporting import html
        from camae.reporting.style import data_uri, png

        curve = html.image(data_uri(png(self.curves(), dpi=110)), "Loss curve") if self.history else ""
        return html.notebook_facts(str(self.path), self._facts()) + curve


def accepts_positions(*names: str) -> Callable[[Function], Function]:
    """Decorator: keyword-only arguments may be given by position too, in this order."""

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*positions: object, **keywords: object) -> object:
            if len(positions) > len(names):
                return function(*positions, **keywords)
            return function(**dict(zip(names, positions, strict=False)), **keywords)

        return cast(Function, call)

    return decorate


@accepts_positions("data", "model", "out", "steps")
def train(
    data: Data,
    model: str | None = None,
    *,
    out: str | Path,
    steps: int | None = None,
    config: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    metadata: Sequence[str | Path] = (),
    negative_controls: Sequence[str] = (),
    channels: Sequence[str] = (),
    z: int | str | None = None,
    time: int | str | None = None,
    variant: str | Path | None = None,
    **settings: object,
) -> Run:
    """Train a CA-MAE on images of any channel set, or another of the paper's systems on a fixed one.

    data: a manifest (object, CSV or Parquet) or a folder a reader knows; or several, also of different channel sets:
        `[(manifest, weight), ...]`, `{name: (manifest, weight), ...}` or a TOML file with a table `[name]` of `data`
        and `weight` each. Weights are shares of the crops; without them data sets count by their sites.
    model: preset name (default: the configuration file's, else ca_mae_vit_b16). out: run folder. steps: optimizer
        steps. They may also be given by position, in this order.
    config: TOML file of `TrainConfig` fields; arguments win over it, the resolved copy is kept in `out`. resume:
        continue a run found in `out`, exactly as if it had not stopped; False refuses a folder with one.
    format, incomplete, pattern, metadata, negative_controls, z, time, variant: as in
        `camae.dataloader.read_manifest`.
    channels: those that get a decoder, by default all of the data; for files of several channels that do not name
        them, also their names, in file order. settings: any field of `camae.training.config.TrainConfig`.
    Under torchrun every process calls this with the same arguments and takes its part of every batch. SIGTERM, SIGINT
    (Ctrl-C) and SIGHUP write a checkpoint at the end of the step and end the process with code 143, 130 or 129, a
    second one at once; SIGUSR1 writes a checkpoint and goes on. On a CPU a batch that would take much memory is
    computed in several passes, and `events.jsonl` says so. Writes `config.toml`, `run.json`, `log.jsonl`,
    `events.jsonl`, `bad_sites.json` for sites that could not be read, `checkpoints/`, `model.safetensors`,
    `reconstructions.npz` and pictures. Raises CamaeError for bad data or settings, and for outputs and memory it lacks.
    """
    run = output_folder(out, data)
    given = {"steps": steps, "model": model, "channels": channels if len(channels) else None}
    resolved = _resolved(config, given, settings)
    sources = open_data(
        data,
        format=format,
        incomplete=incomplete,
        pattern=pattern,
        metadata=metadata,
        negative_controls=negative_controls,
        z=z,
        time=time,
        file_channels=resolved.channels,
        variant=variant,
    )
    (training, validation), (left_out, notes) = split_data(sources, resolved.val), _left_out(sources)
    world = World.join(resolved.device)
    callbacks = _callbacks(resolved, run, (validation or training)[0], quiet)
    with writing(run, world.rank, world.size, required=False):
        trained = Trainer(resolved, training, validation, run, quiet=quiet, callbacks=callbacks).run(resume)
        if world.rank == 0:
            left_out.write(run)
    return Run(run, trained, read_log(run / "log.jsonl"), left_out, notes)


def _resolved(
    config: str | Path | None, given: Mapping[str, object], settings: dict[str, object]
) -> TrainConfig:
    """Settings of the run: the file's, then those given (None: not), then the others."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(table := settings.get("backends"), Mapping | Backends):
        settings = settings | {"backends": str(Backends.of(table))}
    return resolve(config, **chosen, **settings)


def _left_out(sources: Sequence[Source]) -> tuple[Omissions, list[str]]:
    """What reading the data sets left out, and the notes on their joins."""
    left_out = Omissions()
    for source in sources:
        left_out.extend(source.manifest.left_out)
    return left_out, [note for source in sources for note in source.manifest.notes]


def _callbacks(config: TrainConfig, out: Path, pictured: Source, quiet: bool) -> list[Callback]:
    """The probe and the pictures that the settings ask for."""
    callbacks: list[Callback] = []
    if probe := Probe.from_settings(config.probe):
        callbacks.append(ProbeCallback(probe, config.steps, config.value_range, config.reader))
    if config.picture_every or not quiet:
        crops = CenterCrops(pictured.manifest, config.value_range, config.reader)
        # Before the end no rank has the whole of an FSDP2 model.
        every = 0 if config.parallel == "fsdp" else config.picture_every
        ratio = config.mask_ratio if isinstance(config.mask_ratio, float) else None
        callbacks.append(PictureCallback(out, crops, every, ratio))
    return callbacks
