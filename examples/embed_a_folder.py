"""Embed a folder of TIFFs: one vector for each well.

    python examples/embed_a_folder.py                                   # on a generated screen
    python examples/embed_a_folder.py --images plates/ --model OpenPhenom  # your own images and weights

Without --model a small one is trained for a few steps first: enough to run, not to be good.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import camae
from camae.dataloader import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--pattern", help="regular expression for their names, where they are not recognized")
    parser.add_argument("--model", help="a run of camae.train, or a folder with released weights")
    parser.add_argument("--out", type=Path, default=Path("runs/example-embed"))
    options = parser.parse_args()

    images, model = options.images, options.model
    if images is None:
        from generated_screen import write_screen

        images = write_screen(options.out / "images", plates=1)

    # Plate, well, site and channel are read from the names of the files.
    manifest = read_manifest(images, pattern=options.pattern)
    print(manifest)

    if model is None:
        small = {"crop": 96, "width": 96, "depth": 4, "heads": 3, "decoder": "small"}
        run = camae.train(
            manifest, "ca_mae_vit_ti16", options.out / "model", steps=20, batch_size=8, model_options=small
        )
        model = run.path

    # Every site is cut into tiles of the model's crop; a well is the mean over its sites and tiles.
    table = camae.embed_screen(manifest, model=model, out=options.out / "embeddings")
    print(table[["Metadata_Plate", "Metadata_Well", "emb_0000", "emb_0001"]].head(3))
    print(f"{len(table)} wells: {options.out / 'embeddings' / 'wells.parquet'}")


if __name__ == "__main__":
    main()
