"""`camae models`: presets with their sizes and costs."""

from __future__ import annotations

from typing import Annotated

import typer

from camae.cli.console import say, say_table


def models(
    channels: Annotated[int, typer.Option(help="channels of a crop")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON, in FLOPs and bytes")] = False,
) -> None:
    """List presets with parameters, tokens, FLOPs and memory per crop, by formula."""
    from camae.model.registry import DEFAULT, families
    from camae.training.preset_table import preset_table

    table = preset_table(channels)
    if as_json:
        print(table.to_json(orient="records", indent=2))
        return
    crop = table["crop"].iloc[0]
    say(f"for crops of {channels} x {crop} x {crop} px, by formula; nothing here is measured")
    sizes = [
        [r.preset, f"{r.width} x {r.depth}", _millions(r.encoder_parameters), _millions(r.parameters)]
        for r in table.itertuples()
    ]
    say_table(
        sizes, ["preset", "width x depth", "encoder, M", "with decoders, M"], "Parameters (M: millions)"
    )
    header = ["preset", "encoder tokens", "GFLOP", "MB"]
    for kind, title in (
        ("embed", "Embedding a crop in float32 (MB: a pass, beside the weights)"),
        (
            "train",
            "Training on a crop in bf16, forward and backward, masked as the preset says (MB: activations)",
        ),
    ):
        values = zip(*(table[f"{kind}_{name}"] for name in ("tokens", "flops", "bytes")), strict=True)
        costs = [[f"{t:,}", f"{f / 1e9:,.0f}", f"{b / 1e6:,.0f}"] for t, f, b in values]
        say_table([[n, *cells] for n, cells in zip(table["preset"], costs, strict=True)], header, title)
    others = ", ".join(name for name in families() if name != DEFAULT)
    say(f"other families of models, see camae paper: {others}")


def _millions(count: float) -> str:
    return f"{count / 1e6:.1f}"
