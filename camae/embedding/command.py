"""`camae embed`: a screen embedded by one process, by one of several ranks, or by Ray actors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from camae.embedding.default_model import resolve_model
from camae.embedding.export import to_anndata
from camae.embedding.ranks import rank_and_world
from camae.embedding.screen import embed_screen
from camae.errors import CamaeError
from camae.inference.bag_of_channels import BagOfChannels


def run_embed(
    data: str,
    model: str,
    out: Path,
    settings: dict[str, Any],
    place: dict[str, Any],
    form: dict[str, Any],
    ray_workers: int,
    ray_gpus: float,
    anndata: bool,
) -> str:
    """Embed and say what was written. place: device, rank, world. form: linear, compile, bag_of_channels."""
    level = settings["level"]
    path = out / f"{level}s.parquet"
    if ray_workers:
        if any(value is not None for value in place.values()):
            raise CamaeError("Ray places its own workers: leave out --device, --rank and --world")
        if any(form.values()):
            raise CamaeError(
                "Ray workers load the model as it is: leave out --linear, --compile, --bag-of-channels"
            )
        from camae.embedding.ray_actors import embed_screen_ray

        table = embed_screen_ray(data, model, out, workers=ray_workers, gpus_per_worker=ray_gpus, **settings)
    else:
        rank, world = rank_and_world(place["rank"], place["world"])
        table = embed_screen(data, _formed(model, place["device"], **form), out, **settings, **place)
        if not table.attrs["complete"]:
            return f"{len(table)} sites embedded as rank {rank} of {world}; the last rank writes {path}"
    said = f"{len(table)} {level}s embedded: {path}"
    if anndata:
        to_anndata(path, path.with_suffix(".h5ad"))
        said += f", {path.with_suffix('.h5ad')}"
    return said


def _formed(model: str, device: str | None, linear: str | None, compile: bool, bag_of_channels: bool) -> Any:
    """The model as asked for: rewritten for speed, seeing one channel at a time, or as it is."""
    net = resolve_model(model, device)
    if linear is not None or compile:
        from camae.inference.accelerate import accelerate

        net = accelerate(net, linear or "float32", compile=compile)
    return BagOfChannels(net) if bag_of_channels else net
