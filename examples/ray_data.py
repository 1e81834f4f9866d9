"""Ray Data: a pipeline of your own whose actors read sites and call `camae.embed`; one Parquet file for each plate.

    python examples/ray_data.py                                            # on a generated screen
    python examples/ray_data.py --images plates/ --model runs/a --actors 8 --gpus 1 --out results/

The same command goes on where it was stopped: plates whose file is there are not computed again, and a file is
written whole or not at all. Exit codes are those of `camae`: 0 done, 2 an error that a retry does not change (one
sentence says what to do), 130 stopped by Ctrl-C; anything else is a process that was killed: start it again.

`camae embed --ray-workers 8` does this for a whole screen by itself, also within a plate. Take this form where the
pipeline has steps of its own before or after the vectors.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import camae
from camae.dataloader import Manifest, read_manifest
from camae.dataloader.read_pixels import read_site
from camae.embedding_table import make_table, write_table
from camae.errors import CamaeError


class Embedder:
    """Ray actor: the model is loaded once, then each batch of rows of the manifest becomes vectors."""

    def __init__(self, manifest: Manifest, model: str) -> None:
        self.manifest = manifest
        self.model = camae.load(model)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = batch["row"].tolist()
        sites = [read_site(self.manifest, row) for row in rows]  # ((C, H, W), names of the channels) of each
        images, channels = [images for images, _ in sites], [names for _, names in sites]
        vectors = [
            camae.embed(image, names, model=self.model, tiles="grid")
            for image, names in zip(images, channels, strict=True)
        ]
        return batch | {"vector": np.stack(vectors)}


def embed_plate(
    manifest: Manifest, rows: np.ndarray, model: str, actors: int, gpus: float, out: Path
) -> None:
    """The sites of one plate, by actors, into one file. Ray gives rows back in any order: they are sorted again."""
    import ray

    pipeline = ray.data.from_items([{"row": int(row)} for row in rows]).map_batches(
        Embedder,
        fn_constructor_args=(manifest, model),
        batch_size=4,
        concurrency=actors,
        num_gpus=gpus,
    )
    found = sorted(pipeline.take_all(), key=lambda item: item["row"])
    vectors = np.stack([item["vector"] for item in found])
    metadata = manifest.table.iloc[[item["row"] for item in found]].filter(regex="^Metadata_")
    write_table(out, make_table(metadata, vectors), {"model": model, "pool": "mean", "tiles": "grid"})


def run(options: argparse.Namespace) -> None:
    import ray

    images, model = options.images, options.model
    if images is None:
        images, model = generated(options.out)
    manifest = read_manifest(images)
    ray.init(num_cpus=options.cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    plates = manifest.table["Metadata_Plate"].to_numpy(str)
    for plate in np.unique(plates):
        path = options.out / "plates" / f"{plate}.parquet"
        if path.exists():
            print(f"plate {plate}: there already")
            continue
        embed_plate(manifest, np.flatnonzero(plates == plate), model, options.actors, options.gpus, path)
        print(f"plate {plate}: {len(pd.read_parquet(path))} sites in {path}")


def generated(out: Path) -> tuple[Path, str]:
    """Two plates and a small model, made once."""
    from generated_screen import write_screen

    images = out / "images"
    if not images.exists():
        write_screen(images, plates=2)
    small = {"crop": 96, "width": 96, "depth": 2, "heads": 3, "decoder": "small"}
    settings: dict = {"steps": 2, "batch_size": 8, "model_options": small}
    return images, str(camae.train(read_manifest(images), "ca_mae_vit_ti16", out / "model", **settings).path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="manifest or folder of images")
    parser.add_argument("--model", help="run, checkpoint, model file or hf://owner/name@revision")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
    parser.add_argument("--cpus", type=int, help="CPUs of a local Ray; default all")
    parser.add_argument("--out", type=Path, default=Path("runs/example-ray"))
    try:
        run(parser.parse_args())
    except CamaeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped: plates that are written stay; the same command goes on from there", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
