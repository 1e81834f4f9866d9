"""`python bench/decoders.py` writes DECODERS.md: FLOPs by formula, and what bench/results holds of each decoder."""

from __future__ import annotations

import json
from pathlib import Path

from camae.model.config import DECODERS, preset
from camae.model.flops import model_flops

HERE = Path(__file__).parent
FORMS = {
    "paper": "separate 512x8 for each channel, cross-attention included",
    "released": "one shared cross-attention over all tokens, then 512x8 for each channel",
    "small": "one shared cross-attention over visible tokens, then 256x2 for each channel",
    "cross": "two shared cross-attention blocks of width 256 alone, on half of the masked patches",
}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def formulas(patch: int) -> str:
    """Decoder forward FLOPs per crop beside a ViT-B encoder, 6x256x256, 75 % masked, 64 crops a step."""
    rows = []
    for name in DECODERS:
        c = preset(f"ca_mae_vit_b{patch}", decoder=name)
        ours, plain = (model_flops(c, (6,) * 64, 0.75, plain=p) for p in (False, True))
        share = ours.decoder / ours.forward
        rows.append([name, f"{plain.decoder / 64e9:.1f}", f"{ours.decoder / 64e9:.1f}", f"{share:.0%}"])
    return table(["decoder", "plain, GFLOP", "with rewrites, GFLOP", "of the model's forward"], rows)


def measured() -> str:
    """The last row of every decoder on every device."""
    last: dict[tuple[str, str], dict] = {}
    for file in sorted((HERE / "results").glob("*/training.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            if row["op"] == "decoder":
                last[row["device"], row["case"]] = row
    rows = [
        [
            device,
            case,
            f"{r['parameters'] / 1e6:.1f}",
            f"{r['decoder_gflops_per_crop']:.1f}",
            f"{r['saved_megabytes_per_crop']:.0f}",
            f"{r['crops_per_second']:.2f}",
        ]
        for (device, case), r in last.items()
    ]
    header = ["device", "decoder", "M parameters", "decoder GFLOP/crop", "MB kept/crop", "crops/s"]
    return table(header, rows)


def main() -> None:
    forms = "\n".join(f"- `{name}`: {what}." for name, what in FORMS.items())
    text = f"""# Decoders

Written by `python bench/decoders.py`; the measured rows by `pytest bench/test_training.py --full -k decoders`.

{forms}

"Plain" projects every masked patch for itself, keys and values once per channel, and decodes every patch. The
rewrites are exact; `cross` also leaves patches out, which keeps the loss unbiased. "MB kept" is what autograd keeps
for the backward pass, in fp32, whole model.

## Formula: ViT-B/16, 6x256x256, 75 % masked, forward, per crop

{formulas(16)}

## Formula: ViT-B/8, the same

{formulas(8)}

## Measured: a training step (forward and backward) with a ti16 encoder on 2 crops of 6x256x256, fp32

{measured()}
"""
    (HERE / "DECODERS.md").write_text(text)


if __name__ == "__main__":
    main()
