"""Training loop."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import MixedLoader, Source
from camae.dataloader.plane_batch import PlaneBatch
from camae.errors import CamaeError
from camae.files import remove_leftovers
from camae.memory import free_memory
from camae.model import registry
from camae.model.activation_checkpointing import set_recompute
from camae.model.ca_mae import CAMAE
from camae.model.interface import Model
from camae.model.weights import MODEL_FILE, save
from camae.training import checkpoint_files
from camae.training.callbacks import Callback, is_due
from camae.training.channel_masking import ChannelMask
from camae.training.checkpoint_manager import CheckpointManager
from camae.training.config import MaskSchedule, TrainConfig
from camae.training.data import SignalGuard, micro_batches
from camae.training.distributed import ParallelModel, World, whole_model
from camae.training.evaluation import validate
from camae.training.memory_estimate import estimate_of, memory_errors, passes_sentence, planned_budget
from camae.training.metrics import LossBreakdown, Meter
from camae.training.optimization import EMA, build_optimizer, clip_gradients, learning_rate, mask_ratio_at
from camae.training.precision import AUTO, autocast, chosen, first_precision, measured_gain
from camae.training.process import Interrupts, keep_freed_pages, signal_name
from camae.training.randomness import mask_noise, step_seed
from camae.training.run_log import LiveTable, LogRow, RunLog, log_event
from camae.training.run_record import data_record, run_record, write_bad_sites, write_run_folder
from camae.training.stability import SpikeGuard, step_unless
from camae.training.training_terms import attach_terms, detach_terms
from camae.training.warm_start import build_model, model_config


class StepResult(NamedTuple):
    """Outcome of one optimizer step.

    losses: scalars on the device, summed over passes and ranks; "total" is what was trained. breakdown: losses by
    channel and data set, where they are logged. grad_norm: () on the device, before clipping.
    """

    losses: dict[str, torch.Tensor]
    breakdown: LogRow
    grad_norm: torch.Tensor
    lr: float


class Trainer:
    """Training loop of one run, in one of its processes.

    training, validation: data sets. out: run folder. callbacks: see `Callback`.
    """

    def __init__(
        self,
        config: TrainConfig,
        training: Sequence[Source],
        validation: Sequence[Source],
        out: Path,
        *,
        quiet: bool = False,
        callbacks: Sequence[Callback] = (),
    ):
        self.config, self.training, self.validation, self.out = config, training, validation, out
        self.callbacks = callbacks
        self.world = World.join(config.device)
        self.device, self.quiet = self.world.device, quiet or not self.world.is_rank0
        self.precision = first_precision(config.precision, self.device)
        if self.device.type == "cpu":
            keep_freed_pages()
        torch.manual_seed(config.seed)
        made = model_config(config, training, checkpoint_files.known_channels(out))
        planes = [len(s.manifest.channels) for s in training]
        self.memory = estimate_of(config, made, planes, self.world.size, self.precision == "bf16")
        self.token_budget = planned_budget(self.memory, config, self._free_memory(), self.device)
        self.model, self.new_channels = build_model(config, training, made, self.device)
        self.channel_mask = ChannelMask(config, self.model, training)
        self.terms = attach_terms(config, self.model, training, self.world.size)
        self.together = (
            config.cross_well_group if config.cross_well else 1
        )  # crops that no pass or data set parts
        self.parallel = ParallelModel(self.model, self.world, config.parallel, self.precision == "bf16")
        self.optimizer = build_optimizer(self.model, config)
        set_recompute(self.model, config.recompute, config.recompute_selective)
        self.ema = EMA(self.model, config.ema) if config.ema else None
        self.mask_schedule: MaskSchedule = config.mask_ratio or self.model.config.mask_ratio
        self.alpha = self.model.config.alpha if config.alpha is None else config.alpha
        self.guard = SignalGuard([s.manifest for s in training], config.reader)
        self.spikes = SpikeGuard(config.spike, self.device)
        self.interrupts = Interrupts(config.checkpoint_minutes)
        self.requested = [0, 0]  # by signals or the timer, on any rank: checkpoint now; signal to stop by
        self.checkpoints = CheckpointManager(
            out, config, self.world, self.model, self.optimizer, self.ema, self.spikes, data_record(training)
        )
        self.meter = Meter(self.model, self.device, self.precision, self.world.size)
        self.log_every = config.log_every or (1 if self.device.type == "cpu" else 10)

    def run(self, resume: bool) -> Model:
        """Train from the last checkpoint (or from the start) to the last step; returns the model, in eval mode."""
        step = self._resume(resume)
        measured = self._read_ahead(step)
        if self.world.is_rank0:
            self._write_record(step, measured)
        log = RunLog(self.out / "log.jsonl", step, self.config.tensorboard) if self.world.is_rank0 else None
        try:
            with self.interrupts, LiveTable(self.config.steps, step, disable=self.quiet) as live:
                self._steps(step, log, live)
        finally:
            if log is not None:
                log.close()
                write_bad_sites(self.out, [self.loader.bad_sites])
        if self.ema is not None and self.config.ema_final:
            self.ema.copy_to_weights()
        model = whole_model(self.model).eval()
        detach_terms(model)
        if self.world.is_rank0:
            save(model, self.out / MODEL_FILE, step=self.config.steps)
            for callback in self.callbacks:
                callback.on_train_end(model)
        return model

    def _free_memory(self) -> float:
        """Bytes that this rank may take, the least over ranks; ranks of one host share what it has."""
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = free_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        return -self.world.all_reduce_max([-free])[0]

    def _resume(self, resume: bool) -> int:
        """Resume the run in the folder, if there is one and it may be. Returns the steps already done."""
        if not resume and checkpoint_files.checkpoint_folders(self.out):
            raise CamaeError(f"{self.out} already holds a run; choose another folder or resume it")
        if self.world.is_rank0:
            remove_leftovers(self.out)
        self.checkpoints.token_budget = self.token_budget
        step = self.checkpoints.resume()
        self.token_budget = self.checkpoints.token_budget
        self.precision = self.checkpoints.precision or self.precision
        return step

    def _read_ahead(self, step: int) -> str:
        """Start reading, and check the first batch: a run refused for its images has written nothing yet.

        Returns what the log is to say of a precision measured on the batch, or nothing.
        """
        self.loader = self._loader(step)
        self.batches: Iterator[PlaneBatch] = iter(self.loader)
        if step < self.config.steps:
            first = next(self.batches)
            self.guard.check(first)
            self.batches = itertools.chain([first], self.batches)
            if step == 0 and self.config.precision == AUTO and self.device.type == "cpu":
                return self._measure_precision(first)
        return ""

    def _measure_precision(self, batch: PlaneBatch) -> str:
        """Take the precision that is faster on a pass of `batch`; returns why."""
        part, _ = next(self._micro_batches(iter([batch])))
        ratio = mask_ratio_at(0, self.config.steps, self.mask_schedule)

        def run_pass(precision: str) -> None:
            self.precision = precision
            self._train_losses(part, ratio, False)["total"].backward()

        self.model.train()
        gain = measured_gain(self.model, run_pass)
        thousandths = self.world.broadcast_from_rank0(round(1000 * gain))  # every rank takes the same
        self.precision, why = chosen(thousandths / 1000)
        self.checkpoints.precision = self.precision
        return why

    def _write_record(self, step: int, measured: str) -> None:
        """Make the run's folder, and say what was measured and how batches are cut where the settings do not."""
        record = run_record(
            self.model,
            self.training,
            self.validation,
            device=str(self.device),
            precision=self.precision,
            processes=self.world.size,
            decoders_started_anew=self.new_channels,
        )
        write_run_folder(self.out, self.config, record)
        if measured:
            log_event(self.out, measured, step)
        budget, memory = self.token_budget, self.memory
        if step > 0 or budget is None or memory is None or budget == self.config.token_budget:
            return
        drops = bool(getattr(self.model.config, "drop_path", 0))
        log_event(self.out, passes_sentence(memory, budget, self.config.batch_size, drops), 0)

    def _loader(self, first_step: int) -> MixedLoader:
        passes = self.config.passes(self.world.size)
        return MixedLoader(
            self.training,
            batch_size=self.config.batch_size // passes,
            seed=self.config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            start_step=first_step * passes,
            workers=self.config.workers,
            loader=registry.crop_loader(self.model),
            crop=self.model.config.crop,
            augment=self.config.augment,
            reader=self.config.reader,
            max_bad_share=self.config.max_bad_share,
            value_range=self.config.value_range,
            replicates=self.config.cross_well_label if self.config.cross_well else None,
            together=self.together,
            device=self.device,
        )

    def _steps(self, first: int, log: RunLog | None, live: LiveTable) -> None:
        loader, batches = self.loader, self.batches
        clock, waited, logged = time.perf_counter(), loader.wait_seconds, first
        self.model.train()
        for step in range(first, self.config.steps):
            with memory_errors(self.config, self.device):
                result = self._step(step, batches)
            done = step + 1
            if self._is_logged(done):
                row = {"step": done} | self._scalars(result)
                streak, row["skipped"] = self.spikes.counts()
                seconds = time.perf_counter() - clock
                row |= {
                    "crops": done * self.config.batch_size,
                    "crops_per_second": (done - logged) * self.config.batch_size / seconds,
                    "data_wait_share": (loader.wait_seconds - waited) / seconds,
                }
                row |= self.meter.row(seconds) | self._evaluations(done)
                # Speed is that of training, without validation and callbacks.
                clock, waited, logged = time.perf_counter(), loader.wait_seconds, done
                if streak >= self.config.rollback_after:
                    row["rolled_back_to"] = self.checkpoints.roll_back(done)
                if log is not None:
                    log.write(row)
                live.add(row)
            live.tick(done)
            if self.requested[0] or is_due(done, self.config.checkpoint_every, self.config.steps):
                live.note(f"checkpoint after step {done:,}")
                self._checkpoint(done)
            if self.world.is_rank0:
                for callback in self.callbacks:
                    callback.on_step_end(done, self.model)

    def _is_logged(self, done: int) -> bool:
        c = self.config
        periodic = is_due(done, self.log_every, c.steps) or is_due(done, c.val_every, c.steps)
        return periodic or any(callback.is_due(done) for callback in self.callbacks)

    def _scalars(self, result: StepResult) -> LogRow:
        """Losses, gradient norm and learning rate of a step, read back from the device in one transfer."""
        names = ["loss", *(name for name in result.losses if name != "total"), "grad_norm"]
        others = [value for name, value in result.losses.items() if name != "total"]
        values = torch.stack([v.double() for v in (result.losses["total"], *others, result.grad_norm)])
        return dict(zip(names, values.tolist(), strict=True)) | result.breakdown | {"lr": result.lr}

    def _evaluations(self, done: int) -> LogRow:
        """Validation losses and what callbacks add to the row after `done` steps."""
        c, row = self.config, LogRow()
        if is_due(done, c.checkpoint_every, c.steps) or is_due(done, c.val_every, c.steps):
            row |= self._validate()
        if self.world.is_rank0:
            for callback in self.callbacks:
                row |= callback.on_log(done, self.model)
        return row

    def _step(self, step: int, batches: Iterator[PlaneBatch]) -> StepResult:
        """One optimizer step: a pure function of (weights, optimizer state, configuration, data, step)."""
        c = self.config
        lr = learning_rate(step, c.steps, c.peak_lr, c.schedule, c.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        detailed = self._is_detailed(step + 1)
        breakdown = LossBreakdown(self.model.config.channels, [s.name for s in self.training])
        shown: set[str] = set()
        mask_ratio = mask_ratio_at(step, c.steps, self.mask_schedule)
        for batch, is_last in self._micro_batches(batches):
            shown.update(batch.names_K)
            self.meter.count(batch.planes_per_sample, mask_ratio)
            with self.parallel.gradient_sync(is_last):
                losses = self._train_losses(batch, mask_ratio, detailed)
                # Ranks' gradients are averaged, and what is wanted is their sum.
                (losses["total"] * self.world.size).backward()
            if detailed:
                breakdown.add(batch, losses.pop("plane_2K"))
            for name, value in losses.items():
                sums[name] = sums[name] + value.detach() if name in sums else value.detach()
        self._agree_over_ranks(shown)
        sums = self.world.all_reduce_sums(sums)
        grad_norm = clip_gradients(self.model, self.config.clip)
        step_unless(self.optimizer, self.spikes.judge(sums["total"], grad_norm))
        if self.ema is not None:
            self.ema.update()
        if detailed:
            self.world.all_reduce_sum(breakdown.sums())
        return StepResult(sums, breakdown.row(), grad_norm, lr)

    def _is_detailed(self, done: int) -> bool:
        """Whether losses by channel and data set are logged after `done` steps."""
        every = self.config.detail_every
        due = every > 0 and done % every == 0 and self._is_logged(done)
        return due and isinstance(self.model, CAMAE)

    def _micro_batches(self, batches: Iterator[PlaneBatch]) -> Iterator[tuple[PlaneBatch, bool]]:
        """A step's batches on the host, cut to the token budget; with each, whether it is the step's last."""
        passes, budget = self.config.passes(self.world.size), self.token_budget
        for i in range(passes):
            batch = next(batches)
            self.guard.check(batch)
            tokens_B = tuple(c * self.model.n_patches(batch) for c in batch.planes_per_sample)
            bounds = micro_batches(tokens_B, budget, together=self.together)
            if self.parallel.sharded and budget is not None:
                # Every forward of a sharded model is a collective: all ranks make the same number.
                count = self.world.all_reduce_max([len(bounds)])[0]
                bounds = micro_batches(tokens_B, budget, count, self.together)
            for first, last in bounds:
                is_last = i == passes - 1 and last == batch.n_samples
                yield batch if len(bounds) == 1 else batch.part(first, last), is_last

    def _train_losses(self, batch: PlaneBatch, mask_ratio: float, detailed: bool) -> dict[str, torch.Tensor]:
        counts = tuple(c * self.model.n_patches(batch) for c in batch.planes_per_sample)
        slots_B = torch.from_numpy(batch.slots_B)
        noise = mask_noise(self.config.seed, slots_B, counts, self.device)
        torch.manual_seed(step_seed(self.config.seed, int(batch.slots_B[0])))
        options: dict[str, object] = {"by_plane": True} if detailed else {}
        options |= self.channel_mask.options(batch)
        manifest, size = self.training[0].manifest, self.config.batch_size
        return self._losses(
            self.parallel.net, batch, noise, manifest, mask_ratio=mask_ratio, n_samples=size, **options
        )

    def _losses(
        self,
        net: torch.nn.Module,
        batch: PlaneBatch,
        noise: torch.Tensor,
        manifest: Manifest,
        **options: object,
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch on the host; options: of the model's forward."""
        on_host = batch
        batch = batch.to(self.device, non_blocking=True)
        if self.terms is not None and self.model.training:
            options |= self.terms.options(on_host, batch)
        labels = registry.labels(self.model, manifest, batch)
        with autocast(self.device, self.precision):
            return net(batch, noise.to(self.device), alpha=self.alpha, **labels, **options)

    def _agree_over_ranks(self, shown: set[str]) -> None:
        """Share requests and channels seen on any rank: one small exchange between hosts while devices work."""
        seen = [name in shown for name in self.parallel.of_channels]
        agreed = self.world.all_reduce_max([*map(int, self.interrupts.requested()), *map(int, seen)])
        self.requested = agreed[:2]
        if self.world.size > 1:
            self.parallel.drop_unused_grads([bool(s) for s in agreed[2:]])

    def _validate(self) -> LogRow:
        # Validation keeps one ratio: losses at different ratios cannot be compared.
        fixed = self.mask_schedule if isinstance(self.mask_schedule, float) else None
        ratio = self.model.config.mask_ratio if fixed is None else fixed

        def losses(batch: PlaneBatch, noise: torch.Tensor, manifest: Manifest) -> dict[str, torch.Tensor]:
            net = self.parallel.net if self.parallel.sharded else self.model
            return self._losses(net, batch, noise, manifest, mask_ratio=ratio, n_samples=batch.n_samples)

        return validate(self.validation, self.model, losses, self.config.value_range, self.config.reader)

    def _checkpoint(self, step: int) -> None:
        """Write the state after `step`; not within a row of skipped steps, unless requested or at the end."""
        save_now, stop = self.requested
        self.requested = [0, 0]
        if save_now or step == self.config.steps or not self.spikes.counts()[0]:
            self.checkpoints.save(step)
        self.interrupts.saved()
        bad = self.world.all_gather(self.loader.bad_sites)
        if self.world.is_rank0:
            write_bad_sites(self.out, bad)
        if stop:
            if self.world.is_rank0:
                name = signal_name(stop)
                log_event(
                    self.out, f"stopped by {name} after step {step}; the same command continues the run", step
                )
            raise SystemExit(128 + stop)
