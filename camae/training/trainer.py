"""`camae.train`: the loop, and nothing that has a file of its own."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import MixedLoader, Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.files import write_json, write_text
from camae.model import registry as families
from camae.model.ca_mae import CAMAE
from camae.model.weights import MODEL_FILE, save
from camae.training import checkpoints
from camae.training.breakdown import Breakdown
from camae.training.checkpoint_manager import Keeper
from camae.training.config import Recipe, resolve, to_toml
from camae.training.data import Data, channels_of, open_data, split_data
from camae.training.distributed import Replicas, World
from camae.training.ema import EMA
from camae.training.events import note
from camae.training.guard import SignalGuard
from camae.training.memory import keep_freed_pages
from camae.training.meter import Meter
from camae.training.new_channels import appended
from camae.training.optimizer import build_optimizer, freeze, set_recompute
from camae.training.passes import cuts
from camae.training.probe import Probe
from camae.training.randomness import mask_noise, step_seed
from camae.training.record import described, run_record, write_bad_sites
from camae.training.run_log import LiveTable, RunLog, read_log
from camae.training.schedule import learning_rate, mask_ratio_at
from camae.training.sharded import whole_model
from camae.training.signals import STOP_EXIT_CODE, Interrupts
from camae.training.stability import SpikeGuard, step_unless
from camae.training.validation import validate


@dataclass(frozen=True)
class Run:
    """A finished (or resumed and finished) training run.

    path: its folder. model: the trained model, in eval mode. history: rows of log.jsonl.
    """

    path: Path
    model: Any
    history: list[dict[str, Any]]


def train(
    data: Data,
    model: str | None = None,
    out: str | Path = "runs/a",
    steps: int | None = None,
    *,
    config: str | Path | None = None,
    resume: bool = True,
    quiet: bool = False,
    format: str | None = None,
    incomplete: str = "error",
    pattern: str | None = None,
    **settings: Any,
) -> Run:
    """Train a CA-MAE on images of any channel set, or another of the paper's systems on a fixed one.

    data: a manifest (object, CSV or Parquet) or a folder a reader knows; or several, with different channel sets
        if need be: `[(manifest, weight), ...]`, `{name: (manifest, weight), ...}` or a TOML file with a table
        `[name]` of `data` and `weight` each. Weights are shares of the crops; without them data sets count by
        their sites.
    model: preset name (default: the configuration file's, else ca_mae_vit_b16).
    out: run folder. steps: optimizer steps.
    config: TOML file of `Recipe` fields; arguments win over it, the resolved copy is kept in `out`.
    resume: continue a run found in `out`, exactly as if it had not stopped; False refuses a folder with one.
    format, incomplete, pattern: how a folder is read, as in `camae.dataloader.read_manifest`.
    settings: any field of `camae.training.config.Recipe`.

    Under torchrun every process calls this with the same arguments and takes its part of every batch.
    SIGTERM and SIGUSR1 write a checkpoint at the end of the step; after SIGTERM the process exits with code 143.
    Writes `config.toml`, `run.json`, `log.jsonl`, `events.jsonl`, `bad_sites.json` when sites could not be read,
    `checkpoints/`, `model.safetensors`, `reconstructions.npz` and pictures. Raises CamaeError with one sentence
    for bad data or settings.
    """
    given: dict[str, Any] = {"steps": steps} if steps is not None else {}
    if model is not None:
        given["model"] = model
    recipe = resolve(config, **given, **settings)
    sources = open_data(data, format=format, incomplete=incomplete, pattern=pattern)
    training, validation = split_data(sources, recipe.val)
    trainer = _Trainer(recipe, training, validation, Path(out), quiet)
    return trainer.run(resume)


class _Trainer:
    """One process of one run."""

    def __init__(
        self, recipe: Recipe, training: list[Source], validation: list[Source], out: Path, quiet: bool
    ):
        self.recipe, self.training, self.validation, self.out = recipe, training, validation, out
        self.world = World.join(recipe.device)
        self.device, self.quiet = self.world.device, quiet or not self.world.main
        self.precision = recipe.precision or ("bf16" if self.device.type == "cuda" else "fp32")
        if self.device.type == "cpu":
            keep_freed_pages()
        torch.manual_seed(recipe.seed)
        self.model, self.new_channels = self._build()
        self.replicas = Replicas(self.model, self.world, recipe.parallel, self.precision == "bf16")
        self.optimizer = build_optimizer(self.model, recipe)
        set_recompute(self.model, recipe.recompute, recipe.recompute_selective)
        self.ema = EMA(self.model, recipe.ema) if recipe.ema else None
        self.mask_schedule = recipe.mask_ratio or self.model.config.mask_ratio
        # Validation and pictures keep one ratio: losses at different ratios cannot be compared.
        fixed = isinstance(self.mask_schedule, float)
        self.mask_ratio: float = self.mask_schedule if fixed else self.model.config.mask_ratio  # type: ignore[assignment]
        self.alpha = self.model.config.alpha if recipe.alpha is None else recipe.alpha
        self.guard = SignalGuard([s.manifest for s in training], recipe.reader)
        self.spikes = SpikeGuard(recipe.spike, self.device)
        self.interrupts = Interrupts(recipe.checkpoint_minutes)
        self.asked = [0, 0]  # by signals or the clock, on any rank: checkpoint now, then stop
        self.keeper = Keeper(
            out, recipe, self.world, self.model, self.optimizer, self.ema, self.spikes, described(training)
        )
        self.meter = Meter(self.model, self.device, self.precision, self.world.size)
        self.probe = Probe.of(recipe.probe)
        self.log_every = recipe.log_every or (1 if self.device.type == "cpu" else 10)

    def _build(self) -> tuple[Any, list[str]]:
        """The model at its start, and the channels whose decoders did not come from `init`."""
        r, channels = self.recipe, channels_of(self.training)
        options = {"channels": r.channels or channels} | r.model_options
        if known := checkpoints.known_channels(self.out):
            options["channels"] = appended(known, options["channels"])
        model = families.build_for(r.model, self.training[0].manifest, **options)
        if len(self.training) > 1 and not isinstance(model, CAMAE):
            raise CamaeError(f"{r.model} trains on one data set with one channel set; ca_mae models mix them")
        new_channels = checkpoints.initialize(model, r.init) if r.init else []
        model.to(self.device)
        model.check_channels(channels)
        freeze(model, r.freeze)
        return model, new_channels

    def run(self, resume: bool) -> Run:
        """Train from the last checkpoint (or from nothing) to the last step."""
        step = self._start(resume)
        self.loader = self._loader(step)
        log = RunLog(self.out / "log.jsonl", step, self.recipe.tensorboard) if self.world.main else None
        try:
            with self.interrupts, LiveTable(self.recipe.steps, step, disable=self.quiet) as live:
                self._steps(step, log, live)
        finally:
            if log is not None:
                log.close()
                write_bad_sites(self.out, [self.loader.bad_sites])
        if self.ema is not None and self.recipe.ema_final:
            self.ema.copy_to_weights()
        model = whole_model(self.model).eval()
        if self.world.main:
            save(model, self.out / MODEL_FILE, step=self.recipe.steps)
            if not self.quiet or self.recipe.picture_every:
                self._pictures(model)
        return Run(self.out, model, read_log(self.out / "log.jsonl"))

    def _start(self, resume: bool) -> int:
        """Make the run folder, or pick up the one that is there. Returns the steps already done."""
        if not resume and checkpoints.checkpoint_folders(self.out):
            raise CamaeError(f"{self.out} already holds a run; choose another folder or resume it")
        step = self.keeper.resume()
        if self.world.main:
            self.out.mkdir(parents=True, exist_ok=True)
            write_text(self.out / "config.toml", to_toml(self.recipe.to_dict()))
            record = run_record(
                self.model,
                self.training,
                self.validation,
                device=str(self.device),
                precision=self.precision,
                processes=self.world.size,
                decoders_started_anew=self.new_channels,
            )
            write_json(self.out / "run.json", record)
        return step

    def _loader(self, first_step: int) -> MixedLoader:
        r = self.recipe
        passes = r.passes(self.world.size)
        return MixedLoader(
            self.training,
            batch_size=r.batch_size // passes,
            seed=r.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=first_step * passes,
            workers=r.workers,
            loader=families.crop_loader(self.model),
            crop=self.model.config.crop,
            augment=r.augment,
            backend=r.reader,
            max_bad_share=r.max_bad_share,
            value_range=r.value_range,
        )

    def _steps(self, first: int, log: RunLog | None, live: LiveTable) -> None:
        r = self.recipe
        loader = self.loader
        batches = iter(loader)
        clock, waited, logged = time.perf_counter(), loader.wait_seconds, first
        self.model.train()
        for step in range(first, r.steps):
            losses, grad_norm, lr = self._step(step, batches)
            done = step + 1
            due = done % r.checkpoint_every == 0 or done == r.steps
            if self._is_logged(done):
                row = {"step": done} | _on_host(losses | {"grad_norm": grad_norm}) | {"lr": lr}
                streak, row["skipped"] = self.spikes.counts()
                now = time.perf_counter()
                row |= {
                    "crops": done * r.batch_size,
                    "crops_per_second": (done - logged) * r.batch_size / (now - clock),
                    "data_wait_share": (loader.wait_seconds - waited) / (now - clock),
                }
                row |= self.meter.row(now - clock)
                waited, logged = loader.wait_seconds, done
                if due or self._is_due(done, r.val_every):
                    row |= self._validate()
                if self._is_probed(done) and self.probe is not None and self.world.main:
                    row |= self.probe.look(self.model, r.value_range, r.reader)
                clock = time.perf_counter()  # speed is that of training, without validation and probe
                if streak >= r.rollback_after:
                    row["rolled_back_to"] = self.keeper.roll_back(done)
                if log is not None:
                    log.write(row)
                live.add(row)
            if due or self.asked[0]:
                self._checkpoint(done)
            if r.picture_every and done % r.picture_every == 0 and self.world.main:
                self._pictures(self.model)

    def _is_logged(self, done: int) -> bool:
        validated = self._is_due(done, self.recipe.val_every)
        return done % self.log_every == 0 or done == self.recipe.steps or validated or self._is_probed(done)

    def _is_probed(self, done: int) -> bool:
        return self.probe is not None and self._is_due(done, self.probe.every)

    def _is_due(self, done: int, every: int) -> bool:
        """Every so many steps, and at the end; 0: never."""
        return every > 0 and (done % every == 0 or done == self.recipe.steps)

    def _step(
        self, step: int, batches: Iterator[PlaneBatch]
    ) -> tuple[dict[str, torch.Tensor | float], torch.Tensor, float]:
        """One optimizer step: a pure function of (weights, optimizer state, recipe, data, step)."""
        r = self.recipe
        lr = learning_rate(step, r.steps, r.peak_lr, r.schedule, r.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        detailed = self._is_logged(step + 1) and r.detail_every > 0 and (step + 1) % r.detail_every == 0
        detailed = detailed and isinstance(self.model, CAMAE)
        breakdown = Breakdown(self.model.config.channels, [s.name for s in self.training])
        shown: set[str] = set()
        mask_ratio = mask_ratio_at(step, r.steps, self.mask_schedule)
        for batch, is_last in self._parts(batches, r.passes(self.world.size)):
            shown.update(batch.names_K)
            self.meter.count(batch.planes_per_sample, mask_ratio)
            with self.replicas.backward(is_last):
                losses = self._train_losses(batch, mask_ratio, detailed)
                # Ranks' gradients are averaged, and what is wanted is their sum.
                (losses["total"] * self.world.size).backward()
            if detailed:
                breakdown.add(batch, losses.pop("plane_2K"))
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        self._agree(shown)
        sums = self._over_ranks(sums)
        grad_norm = self._clip()
        step_unless(self.optimizer, self.spikes.judge(sums["total"], grad_norm))
        if self.ema is not None:
            self.ema.update()
        if detailed:
            self.world.add(breakdown.sums())
        return {"loss": sums.pop("total")} | sums | breakdown.row(), grad_norm, lr

    def _parts(self, batches: Iterator[PlaneBatch], passes: int) -> Iterator[tuple[PlaneBatch, bool]]:
        """A step's batches on the host, cut to the token budget; with each, whether it is the step's last."""
        for i in range(passes):
            batch = next(batches)
            self.guard.check(batch)
            tokens_B = tuple(c * self.model.n_patches(batch) for c in batch.planes_per_sample)
            pieces = cuts(tokens_B, self.recipe.token_budget)
            if self.replicas.sharded and self.recipe.token_budget is not None:
                # Every forward of a shared model is a collective: all ranks make the same number.
                pieces = cuts(tokens_B, self.recipe.token_budget, self.world.most([len(pieces)])[0])
            for first, last in pieces:
                whole = len(pieces) == 1
                is_last = i == passes - 1 and last == batch.n_samples
                yield batch if whole else batch.part(first, last), is_last

    def _train_losses(self, batch: PlaneBatch, mask_ratio: float, detailed: bool) -> dict[str, torch.Tensor]:
        counts = tuple(c * self.model.n_patches(batch) for c in batch.planes_per_sample)
        slots_B = torch.from_numpy(batch.slots_B)
        noise = mask_noise(self.recipe.seed, slots_B, counts, self.device)
        torch.manual_seed(step_seed(self.recipe.seed, int(batch.slots_B[0])))
        options: dict[str, Any] = {"by_plane": True} if detailed else {}
        return self._losses(
            self.replicas.net,
            batch,
            noise,
            self.training[0].manifest,
            mask_ratio=mask_ratio,
            n_samples=self.recipe.batch_size,
            **options,
        )

    def _losses(
        self, net: torch.nn.Module, batch: PlaneBatch, noise: torch.Tensor, manifest: Manifest, **options: Any
    ) -> dict[str, torch.Tensor]:
        batch = batch.to(self.device, non_blocking=True)
        with self._autocast():
            return net(
                batch,
                noise.to(self.device),
                alpha=self.alpha,
                **families.labels(self.model, manifest, batch),
                **options,
            )

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _agree(self, shown: set[str]) -> None:
        """What any rank was asked for or has seen: one small exchange between hosts while devices work."""
        seen = [name in shown for name in self.replicas.of_channels]
        agreed = self.world.most([*map(int, self.interrupts.asked()), *map(int, seen)])
        self.asked = agreed[:2]
        if self.world.size > 1:
            self.replicas.forget_absent([bool(s) for s in agreed[2:]])

    def _over_ranks(self, sums: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each rank's share of the losses, added up."""
        if self.world.size == 1:
            return sums
        total_N = self.world.add(torch.stack([value.float() for value in sums.values()]))
        return dict(zip(sums, total_N.unbind(), strict=True))

    def _clip(self) -> torch.Tensor:
        """Clip the gradient in place; its norm over all parameters before that."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe.clip or math.inf)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _validate(self) -> dict[str, float]:
        def losses(batch: PlaneBatch, noise: torch.Tensor, manifest: Manifest) -> dict[str, torch.Tensor]:
            net = self.replicas.net if self.replicas.sharded else self.model
            options = {"mask_ratio": self.mask_ratio, "n_samples": batch.n_samples}
            return self._losses(net, batch, noise, manifest, **options)

        return validate(self.validation, self.model, losses, self.recipe.value_range, self.recipe.reader)

    def _checkpoint(self, step: int) -> None:
        """Write the state after `step`; not within a row of skipped steps, unless asked for or at the end."""
        save_now, stop = self.asked
        self.asked = [0, 0]
        if save_now or step == self.recipe.steps or not self.spikes.counts()[0]:
            self.keeper.save(step)
        self.interrupts.saved()
        bad = self.world.gather(self.loader.bad_sites)
        if self.world.main:
            write_bad_sites(self.out, bad)
        if stop:
            if self.world.main:
                note(
                    self.out,
                    f"stopped by SIGTERM after step {step}; the same command continues the run",
                    step,
                )
            raise SystemExit(STOP_EXIT_CODE)

    def _pictures(self, model: Any) -> None:
        """Reconstructions (Figure 2) and loss curves (Figure 3) of the run so far, on the first data set."""
        if not hasattr(model, "reconstruct") or (self.replicas.sharded and model is self.model):
            return
        from camae.training.pictures import write_pictures

        source = (self.validation or self.training)[0]
        write_pictures(
            self.out, model, source.manifest, self.mask_ratio, self.recipe.value_range, self.recipe.reader
        )


def _on_host(values: dict[str, torch.Tensor | float]) -> dict[str, float]:
    """Scalars read back from the device in one transfer."""
    names = [n for n, v in values.items() if isinstance(v, torch.Tensor)]
    found = torch.stack([values[n].double() for n in names]).tolist()  # type: ignore[union-attr]
    return values | dict(zip(names, found, strict=True))  # type: ignore[return-value]
