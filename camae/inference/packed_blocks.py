"""Packed blocks of models that are only read: what `embed` runs on a CPU without being asked.

The first pass packs the weights of every block (`FusedBlock`), the next ones use them as long as the weights are the
same bytes: a fingerprint of all of them is taken before each pass, so that any change is seen, also one that
version counters miss (`.data`, NumPy). The model is left as it is; other threads may train or read it meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import nn

from camae.inference.inference_block import FusedBlock, block_layers, fusible
from camae.kernels._cpu import fingerprint
from camae.model.blocks import ParallelBlock, ResidualBlock, Sequences, SequentialBlock, Stream
from camae.model.encoder import TransformerEncoder, substituted_blocks

PlainBlock = ParallelBlock | SequentialBlock
_PLAIN = (ParallelBlock, SequentialBlock, nn.Linear, nn.LayerNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class PackedBlock(ResidualBlock):
    """The packed form of a block's current weights, called as the block. Not differentiable."""

    def __init__(self, block: ParallelBlock | SequentialBlock, kind: str):
        super().__init__(block.backends)
        self.runner = FusedBlock(block_layers(block), kind)

    def advance(self, stream: Stream, sequences: Sequences) -> Stream:
        """The stream after the block."""
        return Stream(self.runner(self.value(stream), sequences))


@dataclass(frozen=True)
class _Packed:
    """Blocks of one encoder in packed form, and the fingerprint of the weights they were packed from."""

    weights: tuple[int, ...]
    blocks: tuple[PackedBlock, ...]


_packed: WeakKeyDictionary[nn.Module, dict[str, _Packed]] = WeakKeyDictionary()  # by kind
_packing = threading.Lock()  # one thread packs a model, the others wait for it


@contextmanager
def packed_blocks(model: nn.Module, kind: str) -> Iterator[None]:
    """Context in which this thread's passes through `model`'s encoders run packed blocks where they can.

    Where they cannot, the encoders' own run: on other devices than a CPU with the C++ ops, with the back-end setting
    block=reference or another attention than the native one, in other dtypes than float32, and where blocks have
    hooks or layers of other classes. Inference only.

    kind: "float32" or "bfloat16", of the products.
    """
    found: dict[nn.Module, tuple[PackedBlock, ...]] = {}
    for encoder in model.modules():
        if isinstance(encoder, TransformerEncoder) and (blocks := _packable(encoder, kind)):
            found[encoder] = _packed_form(encoder, blocks, kind)
    with substituted_blocks(found):
        yield


def _packed_form(encoder: nn.Module, blocks: list[PlainBlock], kind: str) -> tuple[PackedBlock, ...]:
    """Blocks in packed form, of their current weights."""
    weights = [parameter.detach() for block in blocks for parameter in block.parameters()]
    # Before packing: weights that change meanwhile are packed again by the next pass.
    now = (fingerprint(weights), *map(id, blocks))
    with _packing:
        kinds = _packed.setdefault(encoder, {})
        if kind not in kinds or kinds[kind].weights != now:
            kinds[kind] = _Packed(now, tuple(PackedBlock(block, kind) for block in blocks))
        return kinds[kind].blocks


def _packable(encoder: TransformerEncoder, kind: str) -> list[PlainBlock]:
    """The blocks of an encoder where all can be packed, else none."""
    blocks = [block for block in encoder.blocks if isinstance(block, PlainBlock)]
    modules = (module for block in encoder.blocks for module in block.modules())
    weights = encoder.blocks.parameters()
    if (
        len(blocks) == len(encoder.blocks)
        and all(fusible(block.backends) and FusedBlock.supports(block, kind) for block in blocks)
        and all(w.device.type == "cpu" and w.dtype == torch.float32 and w.is_contiguous() for w in weights)
        and all(_is_plain(module) for module in modules)
    ):
        return blocks
    return []


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class does, nothing less and nothing more."""
    own = vars(module)
    changed = "forward" in own or "advance" in own or own.get("_compiled_call_impl") is not None
    parameters = all(type(p) is nn.Parameter for p in module.parameters(recurse=False))
    return type(module) in _PLAIN and parameters and not changed and not any(own[name] for name in _HOOKS)


def _unlock() -> None:
    """In a forked child: a lock that another thread of the parent may have held is made anew."""
    global _packing
    _packing = threading.Lock()


os.register_at_fork(after_in_child=_unlock)
