"""bench/FLOORS.md is what its formulas say, and the formulas agree with figures worked out independently."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def floors(bench_module):
    return bench_module("floors")


def test_committed_file_is_generated(floors):
    assert (BENCH / "FLOORS.md").read_text() == floors.document(), "run python bench/floors.py and commit"


def test_known_figures(floors):
    """Token counts, GFLOP and bytes of L/16 at 85 % and L/8, to the digits in which they are published."""
    l16, l8 = floors.TRAINING[2], floors.TRAINING[3]
    assert (l16.tokens, l8.tokens, floors.EMBEDDING[3].tokens) == (231, 1537, 6145)
    assert round(floors.encoder_flops(l16) / 1e9) == 145
    assert round(floors.encoder_flops(l8) / 1e9) == 1161
    assert round(floors.encoder_flops(floors.EMBEDDING[3]) / 1e9) == 7424
    assert round(floors.tokenize_bytes(l16) / 1e6, 2) == 0.53
    assert round((floors.tokenize_bytes(l16) + floors.statistics_bytes(l16)) / 1e6, 2) == 0.93
    assert round(floors.loss_bytes(l16) / 1e6, 2) == 1.67
    assert round(floors.attention_share(floors.EMBEDDING[3]), 2) == 0.5
    assert round(floors.exponential_bound(64, floors.H100) / 1e12) == 947
