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

// out = softmax(q k^T * scale) v, sums = log2 of the softmax denominators. `dim` is a multiple of 16, there is a key.
struct AttentionHead {
    Rows q, k, v;
    ResultRows out;
    float *sums;
    std::size_t queries, keys, dim;
    float scale;
    HeadNorm q_norm, k_norm;
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
    void (*forward)(const AttentionHead &head, float *scratch);
    void (*backward)(const AttentionGradient &head, float *scratch);
};

extern const AttentionKernels attention_avx512, attention_avx2;

// Floats of scratch for a head of this size.
std::size_t attention_scratch(std::size_t queries, std::size_t keys, std::size_t dim);
std::size_t attention_gradient_scratch(std::size_t queries, std::size_t keys, std::size_t dim);
