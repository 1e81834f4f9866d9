// Attention of one head over one sequence on CPUs, float32: arguments, block sizes and scratch of the kernels.
#pragma once

#include "cpu_kernels.h"

constexpr std::size_t query_rows = strip_rows, panel_keys = panel_columns;

// Forward blocks: scores of six queries (12 KiB) fit the first-level cache, the block's K and V the second.
constexpr std::size_t block_keys = 512;
constexpr std::size_t most_keys = block_keys + panel_keys;  // the last block takes a small rest with it

// Backward blocks: multiples of query_rows, the keys also of panel_keys.
constexpr std::size_t gradient_queries = 96, gradient_keys = 384;

// out = softmax(q k^T) v, sums = log2 of the softmax denominators. `dim` is a multiple of 16, there is a key.
// No sums: nobody asks for them. Packed: the keys by pack_panels, the values by pack_values, the queries
// by pack_rows and in units of log2.
struct AttentionHead {
    const float *queries, *key_panels, *values;
    ResultRows out;
    float *sums;
    std::size_t query_count, key_count, dim;
};

// The gradients of q, k and v for the gradient `grad` of `out`; no norms.
struct AttentionGradient {
    Rows q, k, v, out, grad;
    const float *sums;
    ResultRows dq, dk, dv;
    std::size_t queries, keys, dim;
    float scale;
};

constexpr float log2_e = 1.44269504088896340736f;

// Floats of scratch for a head of this size; in the forward pass beside what is packed.
std::size_t attention_scratch(std::size_t queries, std::size_t dim);
std::size_t attention_gradient_scratch(std::size_t queries, std::size_t keys, std::size_t dim);
