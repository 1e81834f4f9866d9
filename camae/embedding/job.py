"""Embedding job: a screen, a model, an output folder and the options, checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from camae.dataloader.manifest import Manifest
from camae.embedding.config import EmbedConfig
from camae.embedding.encode import MOST_TOKENS, compute_type, default_tokens_per_pass
from camae.embedding.store.gallery_files import GalleryFiles
from camae.embedding.store.inputs import InputStates
from camae.embedding.store.ledger import LEDGER, Ledger, claim
from camae.embedding.store.shards import merge_shards
from camae.embedding.validate import check_layers
from camae.embedding_table import check_wells_agree
from camae.errors import CamaeError
from camae.locks import merging
from camae.model.backends import Backends
from camae.model.interface import Model
from camae.model.pooling import MAPS, MOMENTS, PER_CHANNEL
from camae.model.weights import model_hash
from camae.wells import normal_well


@dataclass(frozen=True)
class EmbedJob:
    """Embedding job. wanted: the ledger that a folder without one gets. inputs: state of the image files.

    gallery: the files of single sites in the Gallery's form, where they are written too.
    """

    model: Model
    manifest: Manifest
    folder: Path
    config: EmbedConfig
    wanted: Ledger
    inputs: InputStates
    gallery: GalleryFiles | None = None

    def claim(self) -> Ledger:
        """The ledger of the output folder, written at the first start.

        Raises CamaeError when the folder holds embeddings of another model, manifest or option.
        """
        with merging(self.folder):
            return self._claim()

    def withdraw(self) -> None:
        """Take the ledger back from a folder without shards: a run refused for its images has claimed nothing."""
        if not any((self.folder / "sites").glob("part-*")):
            (self.folder / LEDGER).unlink(missing_ok=True)

    def merge(self) -> pd.DataFrame | None:
        """Write and return the table when all shards are there, else None."""
        with merging(self.folder):
            return merge_shards(self.folder, self._claim(), self.config.level, self.inputs)

    def _claim(self) -> Ledger:
        return claim(self.folder, self.wanted, any_tokens_per_pass=self.config.tokens_per_pass is None)


def prepare(
    data: Manifest | str | os.PathLike[str] | None,
    model: Model,
    out: Path,
    config: EmbedConfig,
    home: Path | None = None,
) -> EmbedJob:
    """Read the manifest and check what depends on it and on the model.

    home: folder of the Gallery's files, where it is not `out`.
    Raises CamaeError for sites that the options do not fit.
    """
    manifest = config.read(data)
    if config.level == "well":
        _check_wells(manifest)
    if config.pool in MAPS:
        raise CamaeError(
            f"pool={config.pool!r} gives a map of each image, which no table of vectors can hold; use camae.embed, or "
            "pool='mean'"
        )
    by_channel = f"pool={config.pool!r}" if config.pool in PER_CHANNEL else "intensity=True"
    if (config.intensity or config.pool in PER_CHANNEL) and not _same_channels(manifest, model):
        pool = "moments" if config.pool in MOMENTS else "mean"
        impute = "" if config.intensity else "name what some lack in impute, or "
        instead = f"{impute}use pool={pool!r}" if config.pool in PER_CHANNEL else "leave it out"
        raise CamaeError(f"{by_channel} needs sites with the same channels; select them or {instead}")
    on_ray_gpus = config.ray_workers > 0 and config.ray_gpus > 0
    device = "cuda" if on_ray_gpus else model.device.type
    tokens_per_pass = config.tokens_per_pass or (
        MOST_TOKENS["cuda"] if on_ray_gpus else default_tokens_per_pass(model)
    )
    wanted = Ledger(
        model=model.config.name,
        model_hash=model_hash(model),
        manifest_hash=manifest.fingerprint(),
        sites=len(manifest),
        standardization=model.config.standardization,
        crop=model.config.crop,
        tiles=config.tiles or "grid",
        overlap=config.overlap,
        pool=config.pool,
        intensity=config.intensity,
        layers=check_layers(config.layers, model.config),
        value_range=config.value_range,
        dtype=compute_type(model, config.dtype, device),
        backends=Backends.of(config.backends or model.backends).names(
            device, sizes=model.op_sizes(decoder=False)
        ),
        sites_per_shard=config.sites_per_shard,
        tokens_per_pass=tokens_per_pass,
        origin=model.origin,
    )
    name = model.config.name
    gallery = None if config.jump_lite is None else GalleryFiles.of(home or out, name, manifest)
    return EmbedJob(model, manifest, out, config, wanted, InputStates(manifest), gallery)


def _check_wells(manifest: Manifest) -> None:
    """Raises CamaeError for sites that could not be averaged by well after they were embedded."""
    metadata = manifest.table.filter(regex="^Metadata_")
    if "Metadata_Well" not in metadata:
        raise CamaeError("the manifest has no column Metadata_Well; use level='site'")
    check_wells_agree(metadata.assign(Metadata_Well=metadata["Metadata_Well"].map(normal_well)))


def _same_channels(manifest: Manifest, model: Model) -> bool:
    """Whether the vectors of all sites are of the same channels."""
    present = (manifest.table[list(manifest.channels)] != "").to_numpy()
    first = np.unique(present, axis=0, return_index=True)[1]
    return len({tuple(model.encoded_channels(manifest.site_channels(int(row)))) for row in first}) == 1
