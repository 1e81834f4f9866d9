"""Every production configuration compiled for sm_80 and sm_90a, held to its limits and its committed budget."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton, which is installed on Linux only")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("a process that interprets kernels cannot compile them", allow_module_level=True)

from camae.kernels._compile_ahead import TARGETS, Budgets, cases, compile_case, problems

BUDGETS = Budgets.read(Path(__file__).with_name("budgets.json"))
ALL = {(arch, case.op, case.config): case for arch in TARGETS for case in cases(arch)}


def parameters():
    """Head dim 128 is in no preset: its proof is one of the longer ones."""
    for key in ALL:
        marks = [pytest.mark.full] if "d128" in key[2] else []
        yield pytest.param(key, marks=marks, id=" ".join(key))


@pytest.mark.parametrize("key", parameters())
def test_within_limits_and_budget(key):
    case = ALL[key]
    measured = compile_case(case, key[0])
    assert problems(case, measured, BUDGETS.rows.get(measured.key)) == []


def test_table_has_every_row_for_both_tritons():
    versions = {key[3] for key in BUDGETS.rows}
    assert versions == {"3.6.0", "3.7.1"}
    expected = {(op, config, arch, v) for (arch, op, config) in ALL for v in versions}
    assert set(BUDGETS.rows) == expected


def test_a_bad_tile_is_caught():
    """A 256 x 256 tile on 4 warps cannot keep its scores in registers: the gate must say so."""
    case = ALL["sm_80", "varlen_attention", "forward d64 bf16"]
    bad = replace(case, constants={**case.constants, "BLOCK_M": 256, "BLOCK_N": 256}, warps=4, stages=4)
    measured = compile_case(bad, "sm_80")
    found = problems(bad, measured, BUDGETS.rows[measured.key])
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
    }
    for figure, (value, sentence) in wrong.items():
        found = problems(case, replace(good, **{figure: value}), good)
        assert any(sentence in s for s in found), (figure, found)
    assert "no budget row" in problems(case, good, None)[0]
