"""The local start: cross-attention of an untrained decoder looks at the patch's own place."""

import torch

from camae.model.ca_mae import CAMAE
from camae.model.config import preset
from camae.model.local_start import position_columns
from camae.model.positions import sincos_positions


def test_columns_are_distinct_frequencies_of_both_axes():
    for head in range(8):
        columns = position_columns(256, 8, head)
        assert len(columns) == len(set(columns)) == 32
        assert [c // 64 for c in columns] == [0] * 8 + [1] * 8 + [2] * 8 + [3] * 8
        assert max(c % 64 for c in columns) < 24  # 10000^(-24/64) = 0.03 radians a patch


def test_attention_falls_with_distance():
    """Logits of positions alone are sums of cosines of the distance; the norms before them scale each a little."""
    model = CAMAE(preset("ca_mae_vit_ti16", channels=("A",), decoder="small"))
    block = model.decoder.cross[0]
    table_ND = sincos_positions(16, 16, 256)
    q_Nhd = block.q(block.query_norm(table_ND)).unflatten(1, (8, 32))
    k_Nhd = block.kv(block.context_norm(table_ND))[:, :256].unflatten(1, (8, 32))
    logits_hNN = torch.einsum("nhd,mhd->hnm", q_Nhd, k_Nhd) / 32**0.5
    place_N = torch.arange(256)
    row_N, column_N = place_N // 16, place_N % 16
    distance_NN = (row_N[:, None] - row_N).abs() + (column_N[:, None] - column_N).abs()
    assert distance_NN[place_N, logits_hNN.argmax(2)].max() <= 2
    mean_attention = logits_hNN.mean(0).softmax(1)
    by_distance = [mean_attention[distance_NN == d].mean() for d in range(4)]
    assert by_distance == sorted(by_distance, reverse=True)
    assert by_distance[0] > 5 / 256  # a uniform start has 1/256 everywhere
