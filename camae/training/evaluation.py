"""Evaluation while training: validation loss, reconstructions (paper, Figure 2), and the probe of the embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from camae import maps
from camae.dataloader.center_crops import center_batch
from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.dataloader.mixture import Source
from camae.dataloader.plane_batch import PlaneBatch, ValueRange
from camae.embedding_table import make_table
from camae.errors import CamaeError
from camae.files import write_atomic
from camae.kernels.patches import planes_of_patches
from camae.model.eval_mode import eval_mode
from camae.model.interface import Model, Reconstructs
from camae.training.run_log import LogRow
from camae.typed_settings import check_settings, from_settings, limited

SITES = 32
_AT_ONCE = 8
_RIDGE = 1.0  # penalty in units of a site's mean squared length on standardized features

Losses = Callable[[PlaneBatch, torch.Tensor, Manifest], dict[str, torch.Tensor]]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Context with the model in eval mode and without gradients; its mode is restored after."""
    with eval_mode(model), torch.no_grad():
        yield


@dataclass(frozen=True)
class CenterCrops:
    """Center crops of a manifest's sites, as the model under training sees them.

    value_range: of the planes, see `PlaneBatch`. reader: image back-end.
    """

    manifest: Manifest
    value_range: ValueRange | None = None
    reader: str | None = None

    def batch(self, rows: Sequence[int], crop: int) -> tuple[PlaneBatch, list[str]]:
        """Crops of these sites, and their labels."""
        return center_batch(self.manifest, list(rows), crop, value_range=self.value_range, reader=self.reader)

    def batches(self, rows: Sequence[int], crop: int) -> Iterator[PlaneBatch]:
        """Crops of these sites, a few at once."""
        for start in range(0, len(rows), _AT_ONCE):
            yield self.batch(rows[start : start + _AT_ONCE], crop)[0]


def validate(
    sources: Sequence[Source],
    model: Model,
    losses: Losses,
    value_range: ValueRange | None = None,
    reader: str | None = None,
) -> LogRow:
    """Validation loss: means over up to 32 evenly spaced sites of each data set, as `val_loss`, `val_mse` ...

    The center crops and the masks are the same every time. losses: (batch on the host, noise, manifest) -> losses,
    "total" among them. Several data sets count equally and each has its own `val_data/<name>` too.
    """
    generator = torch.Generator().manual_seed(0)
    row: LogRow = {}
    with evaluating(model):
        for source in sources:
            crops = CenterCrops(source.manifest, value_range, reader)
            rows = range(0, len(source.manifest), max(1, len(source.manifest) // SITES))[:SITES]
            for batch in crops.batches(rows, model.config.crop):
                patches = len(batch.planes_KHW) * model.n_patches(batch)
                found = losses(batch, torch.rand(patches, generator=generator), source.manifest)
                for key, value in found.items():
                    mean = float(value) * batch.n_samples / len(rows)
                    name = "val_loss" if key == "total" else f"val_{key}"
                    row[name] = row.get(name, 0.0) + mean / len(sources)
                    if key == "total" and len(sources) > 1:
                        own = f"val_data/{source.name}"
                        row[own] = row.get(own, 0.0) + mean
    return row


@dataclass(frozen=True)
class Reconstructions:
    """Rows of Figure 2, in self-standardized units.

    masked, reconstruction, original: (R, C, H, W) float32; masked pixels are NaN in `masked`.
    labels: perturbation of each row ("negative control" for controls). channels: C names.
    """

    masked: np.ndarray
    reconstruction: np.ndarray
    original: np.ndarray
    labels: list[str]
    channels: list[str]

    def save(self, path: Path) -> None:
        """Write the arrays to a compressed NumPy file, atomically."""
        write_atomic(path, self._write)

    def _write(self, path: Path) -> None:
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                masked=self.masked,
                reconstruction=self.reconstruction,
                original=self.original,
                labels=np.array(self.labels),
                channels=np.array(self.channels),
            )


def picture_rows(manifest: Manifest, count: int = 4) -> list[int]:
    """Rows of one plate and of the same channels, negative control and perturbation alternating; any rows when nothing
    is known. The channels are those that most sites have.
    """
    has_NC = (manifest.table[list(manifest.channels)] != "").to_numpy()
    kinds, kind_N, counts = np.unique(has_NC, axis=0, return_inverse=True, return_counts=True)
    commonest = max(range(len(kinds)), key=lambda kind: (counts[kind], kinds[kind].sum()))
    table = manifest.table.reset_index(drop=True)[kind_N.reshape(-1) == commonest]
    if "Metadata_Plate" in table:
        table = table[table["Metadata_Plate"] == table["Metadata_Plate"].iloc[0]]
    is_control = table.get("Metadata_control_type", table.index.to_series() * 0 != 0) == "negcon"
    controls, others = table.index[is_control].tolist(), table.index[~is_control].tolist()
    alternating = [row for pair in zip(controls, others, strict=False) for row in pair]
    return (alternating or table.index.tolist())[:count]


def reconstruct_rows(
    model: Model, batch: PlaneBatch, labels: list[str], *, mask_ratio: float
) -> Reconstructions:
    """Masked input, reconstruction (visible patches as they are) and original of each sample of `batch`.

    The mask is the same at every call. Raises CamaeError for a model that does not reconstruct, and for samples of
    different channels.
    """
    if not isinstance(model, Reconstructs):
        raise CamaeError(f"{model.config.name} does not reconstruct images")
    C, (H, W), P = len(batch.channels), batch.planes_KHW.shape[1:], model.config.patch
    B, N = batch.n_samples, model.n_patches(batch)
    if len(batch.planes_KHW) != B * C:
        raise CamaeError(
            f"{B} samples of {len(batch.planes_KHW)} planes do not all have the {C} channels "
            f"{', '.join(batch.channels)}: only samples of the same channels are drawn side by side"
        )
    images = batch.planes_KHW.float().reshape(B, C, H, W)
    eps = model.eps(batch)
    mean = images.mean((2, 3), keepdim=True)
    original = (images - mean) / (images.var((2, 3), unbiased=False, keepdim=True) + eps**2).sqrt()
    noise = torch.rand(B, C * N, generator=torch.Generator().manual_seed(0))
    planes_BCHW = batch.planes_KHW.reshape(B, C, H, W)
    with evaluating(model):
        patches, mask = model.reconstruct(
            planes_BCHW, batch.channels, noise, mask_ratio, value_range=batch.value_range
        )
    pixels = planes_of_patches(patches.float().flatten(0, 1), H, W).reshape(B, C, H, W)
    masked = mask.float().flatten()[:, None].expand(-1, P * P)
    hidden = planes_of_patches(masked, H, W).reshape(B, C, H, W) > 0
    return Reconstructions(
        torch.where(hidden, torch.nan, original).cpu().numpy(),
        torch.where(hidden, pixels, original).cpu().numpy(),
        original.cpu().numpy(),
        labels,
        list(batch.channels),
    )


@dataclass(frozen=True)
class Probe:
    """Probe of the embedding: a linear classifier or the recall of known pairs, on a small labeled manifest.

    data: a small manifest (or folder) with labels. every: steps between evaluations.
    kind: "linear" (logged as `probe_accuracy`: a ridge classifier of `label`, tested on plates, or halves of one
        plate, that it was not fitted on; and `probe_chance`, the share of the commonest label) or "recall" (logged
        as `probe_recall`: recall of `pairs` after alignment, chance 0.1).
    label: metadata column. pairs: CSV of known pairs, two columns of perturbation names.
    pool: "mean", "cls" or "per_channel". alignment: method of `camae.maps.align`, for "recall".
    """

    data: str | Path | Manifest
    every: int = limited(1000, low=1, high=10**9)
    kind: str = limited("linear", choices=("linear", "recall"))
    label: str = "Metadata_Perturbation"
    pairs: str | Path | None = None
    pool: str = limited("mean", choices=("mean", "cls", "per_channel"))
    alignment: str = "tvn"

    def __post_init__(self) -> None:
        check_settings(self, "probe.")
        if self.kind == "recall" and self.pairs is None:
            raise CamaeError("a probe of kind 'recall' needs pairs, a CSV of known pairs")

    @classmethod
    def from_settings(cls, settings: Mapping[str, object]) -> Probe | None:
        """The probe of a configuration's table `probe`; None when it is empty."""
        if settings and "data" not in settings:
            raise CamaeError("probe needs data, a small manifest with labels")
        return from_settings(cls, settings, "unknown probe settings") if settings else None

    def evaluate(
        self, model: Model, value_range: ValueRange | None = None, reader: str | None = None
    ) -> LogRow:
        """Score the embeddings of every site's center crop by the model as it is now."""
        manifest = read_manifest(self.data)
        if self.kind == "linear" and self.label not in manifest.table:
            raise CamaeError(f"the probe's manifest has no column {self.label}")
        features_ND = _center_embeddings(model, CenterCrops(manifest, value_range, reader), self.pool)
        if self.kind == "linear":
            return linear_accuracy(features_ND, manifest, self.label)
        return {"probe_recall": self.recall(features_ND, manifest)}

    def recall(self, features_ND: np.ndarray, manifest: Manifest) -> float:
        """Recall of `pairs` by embeddings (N, D), one row per site, after alignment and aggregation."""
        assert self.pairs is not None
        metadata = manifest.table.filter(regex="^Metadata_").reset_index(drop=True)
        result = maps.map_screen(make_table(metadata, features_ND), self.alignment)
        return float(maps.recall(result.vectors, result.names, maps.read_pairs(self.pairs))["recall"].iloc[0])


def _center_embeddings(model: Model, crops: CenterCrops, pool: str) -> np.ndarray:
    """(N, D) one vector per site, fp64."""
    vectors: list[np.ndarray] = []
    with evaluating(model):
        for batch in crops.batches(range(len(crops.manifest)), model.config.crop):
            found = model.embed_batch(batch.to(model.device), pool)
            vectors += [vector.cpu().numpy().reshape(-1) for vector in found]
    if len({len(v) for v in vectors}) > 1:
        raise CamaeError("the probe's sites differ in channels: use pool 'mean' or 'cls'")
    return np.stack(vectors).astype(np.float64)


def linear_accuracy(features_ND: np.ndarray, manifest: Manifest, label: str) -> LogRow:
    """`probe_accuracy` of a linear probe of `label` over plates (or halves of one) that were held out, and
    `probe_chance`, the share of the commonest label.
    """
    plate = manifest.table.get("Metadata_Plate")
    plates = None if plate is None or plate.nunique() == 1 else plate.astype(str).tolist()
    labels = manifest.table[label].astype(str).tolist()
    penalty = _RIDGE * features_ND.shape[1]
    found = maps.linear_probe(features_ND, labels, plates, penalty=penalty, standardize=True, unseen="count")
    return {"probe_accuracy": found["accuracy"], "probe_chance": found["majority"]}
