// Attention of one head over one sequence, float32, on a CPU: what attention.cpp shares with the kernel that is
// compiled once for each instruction set.
#pragma once

#include <cstddef>

struct HeadNorm {
    const float *weight = nullptr;  // none: the rows are taken as they are
    const float *bias = nullptr;
    float eps = 0;
};

// softmax(q k^T * scale) v. Rows lie `*_stride` floats apart; `dim` is a multiple of 16 and there is a key.
struct AttentionHead {
    const float *q, *k, *v;
    float *out;
    std::size_t q_stride, k_stride, v_stride, out_stride;
    std::size_t queries, keys, dim;
    float scale;
    HeadNorm q_norm, k_norm;
};

using AttentionKernel = void (*)(const AttentionHead &head, float *scratch);

// Floats of scratch a kernel needs for a head of this size.
std::size_t attention_scratch(std::size_t queries, std::size_t keys, std::size_t dim);

void attention_avx512(const AttentionHead &head, float *scratch);
void attention_avx2(const AttentionHead &head, float *scratch);
