"""`camae embed`: a screen embedded by one process, by one of several ranks, or by Ray actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camae.embedding.export import to_anndata
from camae.embedding.screen import embed_screen
from camae.embedding.sharding import rank_and_world
from camae.errors import CamaeError


def run_embed(
    data: str,
    model: str,
    out: Path,
    settings: dict[str, Any],
    place: dict[str, Any],
    ray_workers: int,
    ray_gpus: float,
    anndata: bool,
) -> str:
    """Embed and say what was written. place: device, rank, world."""
    level = settings["level"]
    path = out / f"{level}s.parquet"
    if ray_workers:
        if any(value is not None for value in place.values()):
            raise CamaeError("Ray places its own workers: leave out --device, --rank and --world")
        from camae.embedding.ray_data import embed_screen_ray

        table = embed_screen_ray(data, model, out, workers=ray_workers, gpus_per_worker=ray_gpus, **settings)
    else:
        rank, world = rank_and_world(place["rank"], place["world"])
        table = embed_screen(data, model, out, **settings, **place)
        if not table.attrs["complete"]:
            return f"{len(table)} sites embedded as rank {rank} of {world}; the last rank writes {path}"
    said = f"{len(table)} {level}s embedded: {path}"
    if anndata:
        to_anndata(path, path.with_suffix(".h5ad"))
        said += f", {path.with_suffix('.h5ad')}"
    return said
