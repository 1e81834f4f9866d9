// Table of the CPU kernels and their argument types, for every instruction set.
#pragma once

#include <cstddef>

// Always inlined: a copy compiled for one instruction set must never be the one that other files are linked with.
#define CAMAE_INLINE inline __attribute__((always_inline))

constexpr std::size_t strip_rows = 6;      // 6 rows x 4 vectors of sums fill the registers and hide the FMA's latency
constexpr std::size_t panel_columns = 64;  // packed columns lie together, term after term
constexpr std::size_t width_step = 16;     // what divides widths and head dims

CAMAE_INLINE std::size_t rounded_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

// 2^r on [-1/2, 1/2]: interpolation at Chebyshev nodes, relative error 2.5e-9 before rounding.
constexpr float exp2_terms[] = {1.0f,           0.693147207f,   0.240226509f,  0.0555032723f,
                                0.00961805668f, 0.00134004282f, 0.000154614447f};

// What products read is packed in units of 32 bits: one float, or two bfloat16 that are neighbors in the sum. A pointer to
// such units is a pointer to float.

// LayerNorm of a row.
struct RowNorm {
    const float *weight = nullptr;  // none: the rows are taken as they are
    const float *bias = nullptr;
    float eps = 0;
};

// Rows, `stride` floats apart.
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

struct AttentionHead;
struct AttentionGradient;
struct LayerRows;

// All CPU kernels in one instruction set.
struct CpuKernels {
    const char *instructions;
    std::size_t terms;  // of a sum in one unit: 1 in float32, 2 in bfloat16
    // Rows without gaps, normed where a norm is given, times `factor`, then rows of zeros until there are `padded`.
    void (*pack_rows)(Rows rows, std::size_t count, std::size_t padded, std::size_t dim, const RowNorm &norm,
                      float factor, float *out);
    // Rows transposed in panels of panel_columns, zeros after the last; `four_rows` holds some meanwhile.
    void (*pack_panels)(Rows rows, std::size_t count, std::size_t dim, const RowNorm &norm, float *four_rows,
                        float *panels);
    // The rows of a sum without gaps, `terms` rows in each row of units; zeros fill the last.
    void (*pack_values)(Rows rows, std::size_t count, std::size_t dim, float *out);
    void (*attend)(const AttentionHead &head, float *scratch);
    void (*attend_backward)(const AttentionGradient &head, float *scratch);  // none in bfloat16
    void (*apply_layer)(const LayerRows &rows);
};

extern const CpuKernels kernels_avx512_bf16, kernels_avx512, kernels_avx2;
