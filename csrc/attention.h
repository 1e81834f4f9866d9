// Attention of one head over one sequence, float32, on a CPU: what attention.cpp shares with the kernel that is
// compiled once for each instruction set.
#pragma once

#include <cstddef>

struct HeadNorm {
    const float *weight = nullptr;  // none: the rows are taken as they are
    const float *bias = nullptr;
    float eps = 0;
};

// Always inlined: a copy compiled for one instruction set must never be the one that other files are linked with.
#define CAMAE_INLINE inline __attribute__((always_inline))

// Rows of a head, `stride` floats apart.
struct Rows {
    const float *first;
    std::size_t stride;
    CAMAE_INLINE const float *operator[](std::size_t i) const { return first + i * stride; }
};

struct ResultRows {
    float *first;
    std::size_t stride;
    CAMAE_INLINE float *operator[](std::size_t i) const { return first + i * stride; }
};

// out = softmax(q k^T) v, sums = log2 of the softmax denominators. `dim` is a multiple of 16, there is a key.
// Packed: the keys by pack_panels, values and queries by pack_rows, queries in units of log2.
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

// Both passes in one instruction set.
struct AttentionKernels {
    const char *instructions;
    // Rows without gaps, normed where a norm is given, times `factor`, zeros to a multiple of attention_query_rows.
    void (*pack_rows)(Rows rows, std::size_t count, std::size_t dim, const HeadNorm &norm, float factor, float *out);
    // Rows transposed in panels of attention_panel_keys, zeros after the last; `row` holds one of them meanwhile.
    void (*pack_panels)(Rows rows, std::size_t count, std::size_t dim, const HeadNorm &norm, float *row, float *panels);
    void (*forward)(const AttentionHead &head, float *scratch);
    void (*backward)(const AttentionGradient &head, float *scratch);
};

extern const AttentionKernels attention_avx512, attention_avx2;

constexpr std::size_t attention_query_rows = 6;   // 6 rows x 4 vectors of sums fill the registers and hide the FMA's latency
constexpr std::size_t attention_panel_keys = 64;

constexpr float log2_e = 1.44269504088896340736f;

CAMAE_INLINE std::size_t rounded_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

// Floats of scratch for a head of this size; in the forward pass beside what is packed.
std::size_t attention_scratch(std::size_t queries, std::size_t dim);
std::size_t attention_gradient_scratch(std::size_t queries, std::size_t keys, std::size_t dim);
