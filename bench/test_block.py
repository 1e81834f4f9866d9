"""A block for inference on a CPU, float32: two C++ ops, and layer by layer, beside the same block in eager torch."""

from __future__ import annotations

from typing import Any

import floors
import pytest
import torch
from plain_encoder import PlainBlock
from rows import close

from camae.inference.inference_block import FusedBlock, LayerwiseBlock, block_layers
from camae.kernels.transformer_block import instructions
from camae.model.backends import Backends
from camae.model.blocks import ParallelBlock, Sequences
from camae.model.config import preset

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="the rows of the CPU"),
    pytest.mark.skipif(not instructions(), reason="no C++ block for this processor"),
]


@pytest.mark.parametrize("name", ["ca_mae_vit_ti16", "ca_mae_vit_s16"])
def test_block(recorder: Any, benchmark: Any, name: str) -> None:
    """One crop of six channels (an eighth of one by default) through one block."""
    torch.manual_seed(0)
    config = preset(name)
    block = ParallelBlock(config, 0.0).eval().requires_grad_(False)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    plain, layers, D = PlainBlock(block).eval(), block_layers(block), config.width
    native, layered = FusedBlock(layers), LayerwiseBlock(layers, "float32", True, Backends())
    T = 1537 if recorder.full else 193
    tokens_TD = torch.randn(T, D)
    sequences = Sequences(torch.tensor([0, T], dtype=torch.int32), (T,))

    def run(runner: Any) -> Any:
        def forward() -> torch.Tensor:
            with torch.inference_mode():
                return runner(tokens_TD, sequences)

        return forward

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            return plain(tokens_TD[None])[0]

    def check() -> None:
        for runner in (native, layered):
            close(run(runner)(), eager(), 1e-5)

    recorder.row(
        "block",
        f"{name}, forward",
        shape=(T, D),
        dtype="float32",
        ours={"native": run(native), "layers": run(layered)},
        competitors={"eager torch": eager},
        check=check,
        size_bytes=4 * (2 * T * D + 12 * D * D),
        flops=floors.block_flops(T, D),
        target="1.5x the same block in eager torch",
        benchmark=benchmark,
    )
