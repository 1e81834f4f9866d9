"""A map of biology: embeddings of wells, corrected for batch effects, one vector per gene, known pairs recalled.

    python examples/map_of_biology.py                                                      # generated screen
    python examples/map_of_biology.py --embeddings emb/wells.parquet --pairs known_pairs/  # your own

The table needs Metadata_Plate, Metadata_Perturbation and Metadata_control_type ("negcon": negative control).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import camae
from camae import maps
from camae.dataloader import read_manifest


def embed_generated_screen(out: Path) -> tuple[Path, Path]:
    """Embeddings of a generated screen by a small model trained for a few steps, and its true pairs."""
    from generated_screen import write_screen

    images = write_screen(out / "images")
    manifest = read_manifest(images, metadata=[images / "wells.csv"])  # what is in each well
    # LayerScale 1: with the preset's 1e-4 so short a training hardly changes an encoder.
    small = {
        "crop": 96,
        "width": 96,
        "depth": 4,
        "heads": 3,
        "drop_path": 0.0,
        "decoder": "small",
        "layer_scale": 1.0,
    }
    settings: dict = {"steps": 60, "batch_size": 8, "optimizer": "adamw", "lr": 2e-3, "model_options": small}
    run = camae.train(manifest, "ca_mae_vit_ti16", out / "run", **settings)
    camae.embed_screen(manifest, model=run.path, out=out / "embeddings", pool="per_channel")
    return out / "embeddings" / "wells.parquet", images / "known_pairs.csv"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embeddings", type=Path, help="wells.parquet of camae embed")
    parser.add_argument("--pairs", type=Path, help="file or folder of known pairs, two columns of names each")
    parser.add_argument("--out", type=Path, default=Path("runs/example-map"))
    options = parser.parse_args()
    wells, pairs = options.embeddings, options.pairs
    if wells is None or pairs is None:
        wells, pairs = embed_generated_screen(options.out)
    table, features = maps.read_profiles(wells)
    control = (table["Metadata_control_type"] == "negcon").to_numpy()
    gene = table["Metadata_Perturbation"].to_numpy(str)

    # 1. Batch effects out: typical variation normalization, fitted on each plate's negative controls. As many
    #    components as half of the controls: more would whiten the noise of the controls.
    plate = table["Metadata_Plate"].to_numpy(str)
    components = min(control.sum() // 2, features.shape[1])
    z = maps.align(features, method="tvn", batch=plate, control=control, components=components)

    # 2. Replicates to one vector per gene, with the negative controls as the origin.
    v = maps.aggregate(z[~control], by=gene[~control], method="spherical_mean", origin=z[control].mean(0))
    names = maps.perturbation_names(gene[~control])

    # 3. Which known pairs are among the 5 % most similar or 5 % most opposite of all pairs? Chance is 0.1.
    print(maps.recall(v, names, maps.read_pairs_folder(pairs), interval=True).to_string())
    print(maps.strongest(v, names, count=5).to_string(index=False))


if __name__ == "__main__":
    main()
