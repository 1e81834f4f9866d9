"""Every production configuration compiled for sm_80 and sm_90a, held to its limits and its committed budget."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("a process that interprets kernels cannot compile them", allow_module_level=True)

from camae.kernels._compile_ahead import (
    TARGETS,
    Budgets,
    access_widths,
    blocks_per_multiprocessor,
    cases,
    compile_case,
    problems,
)

BUDGETS = Budgets.read(Path(__file__).with_name("budgets.json"))
VERSIONS = ("3.6.0", "3.7.1")
ALL = {(arch, case.op, case.config): case for arch in TARGETS for case in cases(arch)}


# What every run checks; the rest is one of the longer proofs: head dim 128 and fp16 are in no preset, and fp32 is
# the exception where it is not the tokenizer's.
def is_core(op: str, config: str) -> bool:
    """Presets' shapes in bf16, and the tokenizer in fp32 (embedding without autocast)."""
    if "d128" in config or "d16 " in config or "fp16" in config or config.endswith("fp32/fp32"):
        return False
    if op.startswith("tokenize"):
        return "u16 fp32" not in config
    return "fp32" not in config or op in ("residual_norm", "lion", "plane_statistics")


def parameters():
    """Every case, those outside the core marked."""
    for key in ALL:
        marks = [] if is_core(*key[1:]) else [pytest.mark.full]
        yield pytest.param(key, marks=marks, id=" ".join(key))


@pytest.mark.parametrize("key", parameters())
def test_within_limits_and_budget(key):
    """Limits on any Triton; the budget where this Triton has a row."""
    case = ALL[key]
    measured = compile_case(case, key[0])
    assert problems(case, measured, BUDGETS.rows.get(measured.key)) == []


def test_this_triton_has_budgets():
    """Says so where the tests above could check limits only."""
    import triton

    if triton.__version__ not in VERSIONS:
        pytest.skip(f"no budgets for triton {triton.__version__}: limits alone were checked")
    assert {k[:3] for k in BUDGETS.rows if k[3] == triton.__version__} == {(o, c, a) for a, o, c in ALL}


def test_table_has_every_row_for_both_tritons():
    expected = {(op, config, arch, v) for (arch, op, config) in ALL for v in VERSIONS}
    assert set(BUDGETS.rows) == expected


def test_a_bad_tile_is_caught():
    """A 256 x 256 tile on 4 warps cannot keep its scores in registers: the gate must say so."""
    case = ALL["sm_80", "varlen_attention", "forward d64 bf16"]
    bad = replace(case, constants={**case.constants, "BLOCK_M": 256, "BLOCK_N": 256}, warps=4, stages=4)
    measured = compile_case(bad, "sm_80")
    found = problems(bad, measured, BUDGETS.rows.get(measured.key))
    assert any("spills, none allowed" in sentence for sentence in found)
    assert any("shared memory, limit 166912" in sentence or "budget" in sentence for sentence in found)
    assert all("varlen_attention [forward d64 bf16] on sm_80" in sentence for sentence in found)


def test_every_figure_is_held_to_its_limit():
    """Made-up figures, one over at a time."""
    case = ALL["sm_90", "varlen_attention", "forward d64 bf16"]
    good = BUDGETS.rows["varlen_attention", "forward d64 bf16", "sm_90", "3.7.1"]
    assert problems(case, good, good) == []
    wrong = {
        "spills": (1, "1 spills"),
        "registers": (good.registers + 1, f"registers {good.registers + 1}, budget {good.registers}"),
        "shared": (300_000, "300000 B of shared memory, limit 232448"),
        "mma": (0, "no tensor-core instruction"),
        "blocks": (good.blocks - 1, f"{good.blocks - 1} blocks per multiprocessor, budget {good.blocks}"),
        "loads": (32, "32 bits in the widest global load, budget 128"),
        "stores": (64, "64 bits in the widest global store, budget 128"),
    }
    for figure, (value, sentence) in wrong.items():
        found = problems(case, replace(good, **{figure: value}), good)
        assert any(sentence in s for s in found), (figure, found)
    assert problems(case, good, None) == []
    assert len(problems(case, replace(good, spills=1, shared=300_000), None)) == 2


def test_occupancy_follows_from_registers_shared_memory_and_warps():
    """Worked out with CUDA's occupancy calculator's rules by hand."""
    assert blocks_per_multiprocessor("sm_90", 128, 0, 8) == 2
    assert blocks_per_multiprocessor("sm_90", 129, 0, 8) == 1
    assert blocks_per_multiprocessor("sm_90", 32, 0, 4) == 16
    assert blocks_per_multiprocessor("sm_80", 16, 81_920, 4) == 2
    assert blocks_per_multiprocessor("sm_80", 16, 83_000, 4) == 1
    assert blocks_per_multiprocessor("sm_90", 255, 0, 4) == 2


def test_widths_are_read_from_machine_code():
    sass = "LDG.E.128.CONSTANT R4, [R2] ; LDG.E.U8 R1 ; LDGSTS.E.BYPASS.LTC128B.128 [R1] ; LDG.E R0 ; STG.E.64 [R2], R4"
    assert access_widths(sass, "LDG|LDGSTS") == [128, 8, 128, 32]
    assert access_widths(sass, "STG") == [64]
