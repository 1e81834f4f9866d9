"""Train a CA-MAE on images of your own and see how well it reconstructs a plate it was not trained on.

    python examples/train_on_your_own.py                                        # generated screen, small model
    python examples/train_on_your_own.py --images plates/ --steps 10000 --model ca_mae_vit_b16 --val plate

The same command continues a run that was stopped.
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
    parser.add_argument("--images", type=Path, help="manifest or folder of images")
    parser.add_argument("--pattern", help="regular expression for their names, where they are not recognized")
    parser.add_argument("--model", help="preset, for example ca_mae_vit_b16")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--val", default="plate", help="what is held out: plate, experiment, plate:A,B")
    parser.add_argument("--out", type=Path, default=Path("runs/example-train"))
    options = parser.parse_args()

    images = options.images
    if images is None:
        from generated_screen import write_screen

        images = write_screen(options.out / "images")
    manifest = read_manifest(images, pattern=options.pattern)

    # A preset as it is, or a small model whose fields are changed for a CPU.
    settings: dict = {"steps": options.steps, "batch_size": options.batch_size, "val": options.val}
    if options.model is None:
        small = {"crop": 96, "width": 96, "depth": 4, "heads": 3, "drop_path": 0.0, "decoder": "small"}
        settings |= {"model_options": small, "optimizer": "adamw", "lr": 2e-3}
    run = camae.train(manifest, options.model or "ca_mae_vit_ti16", options.out / "run", **settings)

    # Masked MSE on standardized pixels: 1 is what predicting the mean gives.
    scores = [(row["step"], row["val_mse"]) for row in run.history if "val_mse" in row]
    print("validation, masked MSE: " + ", ".join(f"{mse:.3f} after step {step}" for step, mse in scores))
    print(f"reconstructions: {run.path / 'reconstructions.png'}")
    print(f"report: {camae.report(run.path)}")


if __name__ == "__main__":
    main()
