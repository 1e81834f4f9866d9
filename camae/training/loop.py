"""`camae.train`: the loop, and nothing that has a file of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from camae.dataloader.datasets import read_manifest
from camae.dataloader.loader import CropLoader
from camae.dataloader.manifest import Manifest
from camae.dataloader.planes import PlaneBatch
from camae.errors import CamaeError
from camae.files import write_json, write_text
from camae.model import families
from camae.model.checkpoint import MODEL_FILE, save
from camae.training import checkpoints
from camae.training.guard import SignalGuard
from camae.training.log import RunLog, progress_bar, read_log
from camae.training.optimizer import build_optimizer, freeze
from camae.training.recipe import Recipe, resolve, to_toml
from camae.training.schedule import learning_rate
from camae.training.split import split

_VALIDATION_SITES = 32


@dataclass(frozen=True)
class Run:
    """A finished (or resumed and finished) training run.

    path: its folder. model: the trained model, in eval mode. history: rows of log.jsonl.
    """

    path: Path
    model: Any
    history: list[dict[str, Any]]


def train(
    data: str | Path | Manifest,
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

    data: a manifest (object, CSV or Parquet) or a folder a reader knows.
    model: preset name (default: the configuration file's, else ca_mae_vit_b16).
    out: run folder. steps: optimizer steps.
    config: TOML file of `Recipe` fields; arguments win over it, the resolved copy is kept in `out`.
    resume: continue a run found in `out`, exactly as if it had not stopped; False refuses a folder with one.
    format, incomplete, pattern: how a folder is read, as in `camae.dataloader.read_manifest`.
    settings: any field of `camae.training.recipe.Recipe`.

    Writes `config.toml`, `run.json`, `log.jsonl`, `checkpoints/`, `model.safetensors`,
    `reconstructions.npz` and pictures. Raises CamaeError with one sentence for bad data or settings.
    """
    given: dict[str, Any] = {"steps": steps} if steps is not None else {}
    if model is not None:
        given["model"] = model
    recipe = resolve(config, **given, **settings)
    manifest = read_manifest(data, format=format, incomplete=incomplete, pattern=pattern)
    if len(manifest) == 0:
        raise CamaeError("the manifest has no rows: nothing to train on")
    training, validation = split(manifest, recipe.val)
    trainer = _Trainer(recipe, training, validation, Path(out), quiet)
    return trainer.run(resume)


class _Trainer:
    """One process of one run."""

    def __init__(
        self, recipe: Recipe, training: Manifest, validation: Manifest | None, out: Path, quiet: bool
    ):
        self.recipe, self.training, self.validation, self.out, self.quiet = (
            recipe,
            training,
            validation,
            out,
            quiet,
        )
        self.device = torch.device(recipe.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.precision = recipe.precision or ("bf16" if self.device.type == "cuda" else "fp32")
        torch.manual_seed(recipe.seed)
        options = ({"channels": recipe.channels} if recipe.channels else {}) | recipe.model_options
        self.model = families.build_for(recipe.model, training, **options)
        self.new_channels = checkpoints.initialize(self.model, recipe.init) if recipe.init else []
        self.model.to(self.device)
        self.model.check_channels(training.channels)
        freeze(self.model, recipe.freeze)
        self.optimizer = build_optimizer(self.model, recipe)
        self.mask_ratio = recipe.mask_ratio or self.model.config.mask_ratio
        self.alpha = self.model.config.alpha if recipe.alpha is None else recipe.alpha
        self.guard = SignalGuard(training, recipe.reader)
        self.log_every = recipe.log_every or (1 if self.device.type == "cpu" else 10)

    def run(self, resume: bool) -> Run:
        """Train from the last checkpoint (or from nothing) to the last step."""
        step = self._start(resume)
        log = RunLog(self.out / "log.jsonl", step)
        try:
            with progress_bar(disable=self.quiet) as bar:
                self._steps(step, log, bar)
        finally:
            log.close()
        self.model.eval()
        save(self.model, self.out / MODEL_FILE, step=self.recipe.steps)
        if not self.quiet or self.recipe.picture_every:
            self._pictures()
        return Run(self.out, self.model, read_log(self.out / "log.jsonl"))

    def _start(self, resume: bool) -> int:
        """Make the run folder, or pick up the one that is there. Returns the steps already done."""
        folders = checkpoints.checkpoint_folders(self.out)
        if folders and not resume:
            raise CamaeError(f"{self.out} already holds a run; choose another folder or resume it")
        state: dict[str, Any] = {"step": 0}
        if folders:
            state = checkpoints.restore_checkpoint(folders[-1], self.model, self.optimizer)
            self._check_same_recipe(state, folders[-1])
        self.out.mkdir(parents=True, exist_ok=True)
        write_text(self.out / "config.toml", to_toml(self.recipe.to_dict()))
        write_json(self.out / "run.json", self._record())
        return int(state["step"])

    def _check_same_recipe(self, state: dict[str, Any], folder: Path) -> None:
        """Settings that change what a step computes must be those the run began with."""
        free = {
            "checkpoint_every",
            "keep_checkpoints",
            "log_every",
            "picture_every",
            "workers",
            "device",
            "reader",
        }
        before, now = state["recipe"], self.recipe.to_dict()
        changed = [k for k in now if k not in free and before.get(k) != _json(now[k])]
        if changed:
            raise CamaeError(
                f"{folder}: the run was started with other settings ({', '.join(changed)}); "
                "use those, or another folder with init= to continue from its weights"
            )

    def _record(self) -> dict[str, Any]:
        """What ran: versions, device, back-ends, counts."""
        from camae.doctor import versions

        return {
            "versions": versions(),
            "device": str(self.device),
            "precision": self.precision,
            "backends": dataclasses.asdict(self.model.backends),
            "model": self.model.config.to_dict(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "encoder_parameters": sum(p.numel() for p in self.model.encoder.parameters()),
            "training_sites": len(self.training),
            "validation_sites": 0 if self.validation is None else len(self.validation),
            "decoders_started_anew": self.new_channels,
        }

    def _loader(self, first_step: int) -> CropLoader:
        r = self.recipe
        return families.crop_loader(self.model)(
            self.training,
            crop=self.model.config.crop,
            batch_size=r.batch_size // r.accumulate,
            seed=r.seed,
            augment=r.augment,
            start_step=first_step * r.accumulate,
            workers=r.workers,
            backend=r.reader,
        )

    def _steps(self, first: int, log: RunLog, bar: Progress) -> None:
        r = self.recipe
        loader = self._loader(first)
        batches = iter(loader)
        task = bar.add_task("training", total=r.steps, completed=first, status="")
        clock, waited, logged = time.perf_counter(), loader.wait_seconds, first
        self.model.train()
        for step in range(first, r.steps):
            losses, grad_norm, lr = self._step(step, batches)
            done = step + 1
            if done % self.log_every == 0 or done == r.steps:
                now = time.perf_counter()
                row: dict[str, Any] = {"step": done} | {k: float(v) for k, v in losses.items()}
                self._refuse_nan(row)
                row |= {
                    "lr": lr,
                    "grad_norm": float(grad_norm),
                    "crops": done * r.batch_size,
                    "crops_per_second": (done - logged) * r.batch_size / (now - clock),
                    "data_wait_share": (loader.wait_seconds - waited) / (now - clock),
                }
                clock, waited, logged = now, loader.wait_seconds, done
                if done % r.checkpoint_every == 0 or done == r.steps:
                    row |= self._validate()
                log.write(row)
                status = f"loss {row['loss']:.4f}  {row['crops_per_second']:.1f} crops/s"
                bar.update(task, completed=done, status=status)
            if done % r.checkpoint_every == 0 or done == r.steps:
                self._checkpoint(done)
            if r.picture_every and done % r.picture_every == 0:
                self._pictures()

    def _step(
        self, step: int, batches: Iterator[PlaneBatch]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, float]:
        """One optimizer step: a pure function of (weights, optimizer state, recipe, data, step)."""
        r = self.recipe
        lr = learning_rate(step, r.steps, r.peak_lr, r.schedule, r.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # Masks and stochastic depth depend on the step alone, so that a resumed run repeats them.
        torch.manual_seed(((r.seed + 1) << 32) + step)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for _ in range(r.accumulate):
            batch = next(batches)
            self.guard.check(batch)
            losses = self._loss(batch.to(self.device, non_blocking=True))
            losses["total"].backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, r.clip or math.inf)
        self.optimizer.step()
        return {"loss": sums.pop("total")} | sums, grad_norm, lr

    def _loss(self, batch: PlaneBatch, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if noise is None:
            noise = torch.rand(len(batch.planes_KHW) * self.model.n_patches(batch), device=self.device)
            n_samples, manifest = self.recipe.batch_size, self.training
        else:
            n_samples, manifest = batch.n_samples, self.validation
        with self._autocast():
            return self.model(
                batch,
                noise,
                mask_ratio=self.mask_ratio,
                alpha=self.alpha,
                value_range=self.recipe.value_range,
                n_samples=n_samples,
                **families.labels(self.model, manifest, batch),
            )

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _refuse_nan(self, row: dict[str, Any]) -> None:
        if not math.isfinite(row["loss"]):
            raise CamaeError(
                f"the loss is {row['loss']} at step {row['step']}: lower lr or raise warmup; checkpoints before it are "
                f"in {self.out / 'checkpoints'}"
            )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Losses on centre crops of held-out sites, the same masks every time."""
        if self.validation is None:
            return {}
        from camae.training.pictures import center_batch

        self.model.eval()
        rows = list(range(0, len(self.validation), max(1, len(self.validation) // _VALIDATION_SITES)))
        rows = rows[:_VALIDATION_SITES]
        generator = torch.Generator().manual_seed(0)
        sums: dict[str, float] = {}
        for start in range(0, len(rows), 8):
            chunk = rows[start : start + 8]
            batch, _ = center_batch(self.validation, chunk, self.model.config.crop)
            noise = torch.rand(len(batch.planes_KHW) * self.model.n_patches(batch), generator=generator)
            losses = self._loss(batch.to(self.device), noise)
            for key, value in losses.items():
                name = "val_loss" if key == "total" else f"val_{key}"
                sums[name] = sums.get(name, 0.0) + float(value) * len(chunk) / len(rows)
        self.model.train()
        return sums

    def _checkpoint(self, step: int) -> None:
        state = {"recipe": _json(self.recipe.to_dict()), "crops": step * self.recipe.batch_size}
        checkpoints.save_checkpoint(
            self.out, step, self.model, self.optimizer, state, self.recipe.keep_checkpoints
        )

    def _pictures(self) -> None:
        """Reconstructions (Figure 2) and loss curves (Figure 3) of the run so far."""
        if not hasattr(self.model, "reconstruct"):
            return
        from camae.training.pictures import write_pictures

        source = self.validation if self.validation is not None else self.training
        write_pictures(self.out, self.model, source, self.mask_ratio, self.recipe.value_range)


def _json(value: Any) -> Any:
    """Tuples as lists, as they come back from JSON."""
    if isinstance(value, dict):
        return {k: _json(v) for k, v in value.items()}
    return [_json(v) for v in value] if isinstance(value, (list, tuple)) else value
