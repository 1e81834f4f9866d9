"""A look at biology while a model trains: a linear probe or the recall of known pairs on a small labeled manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camae.dataloader.datasets import read_manifest
from camae.dataloader.manifest import Manifest
from camae.dataloader.plane_batch import ValueRange
from camae.errors import CamaeError

_AT_ONCE = 8
_RIDGE = 1.0  # penalty in units of a site's mean squared length on standardized features


@dataclass(frozen=True)
class Probe:
    """What is looked at, and how often.

    data: a small manifest (or folder) with labels. every: steps between looks.
    kind: "linear" (logged as `probe_accuracy`: a ridge classifier of `label`, tested on plates, or halves of one
        plate, that it was not fitted on; and `probe_chance`, the share of the commonest label) or "recall" (logged
        as `probe_recall`: recall of `pairs` after alignment, chance 0.1).
    label: metadata column. pairs: CSV of known pairs, two columns of perturbation names.
    pool: "mean", "cls" or "per_channel". alignment: method of `camae.maps.align`, for "recall".
    """

    data: str | Path | Manifest
    every: int = 1000
    kind: str = "linear"
    label: str = "Metadata_Perturbation"
    pairs: str | Path | None = None
    pool: str = "mean"
    alignment: str = "tvn"

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "recall"):
            raise CamaeError(f"probe kind {self.kind!r} is not 'linear' or 'recall'")
        if self.every < 1:
            raise CamaeError(f"probe every {self.every} steps: it must be at least 1")
        if self.kind == "recall" and self.pairs is None:
            raise CamaeError("a probe of kind 'recall' needs pairs, a CSV of known pairs")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Probe | None:
        """From the recipe's table `probe`; None when it is empty."""
        if not settings:
            return None
        names = {f.name for f in fields(cls)}
        if unknown := set(settings) - names:
            raise CamaeError(
                f"unknown probe settings {', '.join(sorted(unknown))}; known are {', '.join(sorted(names))}"
            )
        if "data" not in settings:
            raise CamaeError("probe needs data, a small manifest with labels")
        return cls(**settings)

    def look(
        self, model: Any, value_range: ValueRange | None = None, reader: str | None = None
    ) -> dict[str, float]:
        """Embed the center crop of every site with the model as it is now, and score."""
        manifest = read_manifest(self.data)
        if self.kind == "linear" and self.label not in manifest.table:
            raise CamaeError(f"the probe's manifest has no column {self.label}")
        features_ND = _center_embeddings(model, manifest, self.pool, value_range, reader)
        if self.kind == "linear":
            return _linear(features_ND, manifest, self.label)
        return {"probe_recall": self._recall(features_ND, manifest)}

    def _recall(self, features_ND: np.ndarray, manifest: Manifest) -> float:
        from camae import maps
        from camae.embedding_table import make_table
        from camae.maps.pairs import read_pairs
        from camae.maps.perturbation_map import map_screen

        metadata = manifest.table.filter(regex="^Metadata_").reset_index(drop=True)
        result = map_screen(make_table(metadata, features_ND), self.alignment)
        assert self.pairs is not None
        return float(maps.recall(result.vectors, result.names, read_pairs(self.pairs))["recall"].iloc[0])


@torch.no_grad()
def _center_embeddings(
    model: Any, manifest: Manifest, pool: str, value_range: ValueRange | None, reader: str | None
) -> np.ndarray:
    """(N, D) one vector per site."""
    from camae.dataloader.center_crops import center_batch
    from camae.embedding import embed

    was_training, vectors = model.training, []
    model.eval()
    for start in range(0, len(manifest), _AT_ONCE):
        rows = list(range(start, min(start + _AT_ONCE, len(manifest))))
        batch, _ = center_batch(manifest, rows, model.config.crop, value_range=value_range, reader=reader)
        counts = torch.bincount(batch.sample_K).tolist()
        images = list(batch.planes_KHW.split(counts))
        names, at = [], 0
        for count in counts:
            names.append(batch.names_K[at : at + count])
            at += count
        found = embed(images, names, model=model, pool=pool, value_range=value_range)
        vectors += [np.asarray(torch.as_tensor(v).cpu()).reshape(-1) for v in found]
    model.train(was_training)
    if len({len(v) for v in vectors}) > 1:
        raise CamaeError("the probe's sites differ in channels: use pool 'mean' or 'cls'")
    return np.stack(vectors).astype(np.float64)


def _linear(features_ND: np.ndarray, manifest: Manifest, label: str) -> dict[str, float]:
    """Accuracy of one-against-rest ridge regression on folds that were held out."""
    names = manifest.table[label].astype(str).to_numpy()
    classes, target_N = np.unique(names, return_inverse=True)
    plate = manifest.table.get("Metadata_Plate")
    fold_N = (
        np.unique(plate.astype(str), return_inverse=True)[1]
        if plate is not None
        else np.zeros(len(names), int)
    )
    if fold_N.max() == 0:
        fold_N = np.arange(len(names)) % 2
    right = 0
    for fold in range(fold_N.max() + 1):
        train, test = fold_N != fold, fold_N == fold
        mean, std = features_ND[train].mean(0), features_ND[train].std(0) + 1e-9
        x, onehot = (features_ND[train] - mean) / std, np.eye(len(classes))[target_N[train]]
        kernel = x @ x.T + _RIDGE * x.shape[1] * np.eye(len(x))
        weights = x.T @ np.linalg.solve(kernel, onehot - onehot.mean(0))
        scores = (features_ND[test] - mean) / std @ weights + onehot.mean(0)
        right += int((scores.argmax(1) == target_N[test]).sum())
    chance = np.bincount(target_N).max() / len(names)
    return {"probe_accuracy": right / len(names), "probe_chance": float(chance)}
