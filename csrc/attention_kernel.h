// FlashAttention's forward pass for one head (Dao 2023), for a CPU: scores of six queries against a block of keys
// stay in the first-level cache, and only running maxima and sums pass from block to block.
//
// Included by one file for each instruction set. Everything is in an unnamed namespace and uses no templates of
// the standard library: a copy compiled for AVX-512 must never be the one that another file is linked with.
#pragma once

#include <cstring>

#include "attention.h"

namespace {

constexpr std::size_t query_rows = 6;    // 6 rows x 4 vectors of sums fill the registers and hide the FMA's latency
constexpr std::size_t panel_keys = 64;   // keys of a transposed panel
constexpr std::size_t block_keys = 512;  // its scores (12 KiB) fit the first-level cache, its K and V the second
constexpr float least = -1e30f;

// 2^r on [-1/2, 1/2]: interpolation at Chebyshev nodes, relative error 2.5e-9 before rounding.
constexpr float exp2_terms[] = {1.0f,           0.693147207f,   0.240226509f,  0.0555032723f,
                                0.00961805668f, 0.00134004282f, 0.000154614447f};

inline std::size_t rounded_up(std::size_t n, std::size_t step) { return (n + step - 1) / step * step; }

// Inlined (as its caller) because `factor` and the steps are then known: 6 % of the whole.
// out[r][j] = out[r][j] * factor[r] + sum over k of left[r][k] * right[k][j] for six rows and `width` vectors.
template <class Simd, int width>
inline __attribute__((always_inline)) void multiply(const float *left, std::size_t left_stride, const float *right,
                                                    std::size_t right_stride, std::size_t terms, float *out,
                                                    std::size_t out_stride, const float *factor) {
    using Vector = typename Simd::Vector;
    constexpr int rows = query_rows;
    Vector sums[rows][width];
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width; ++j)
            sums[r][j] = factor ? Simd::product(Simd::load(out + r * out_stride + j * Simd::lanes), Simd::fill(factor[r]))
                                : Simd::fill(0);
    for (std::size_t k = 0; k < terms; ++k, right += right_stride) {
        Vector line[width];
#pragma GCC unroll 8
        for (int j = 0; j < width; ++j) line[j] = Simd::load(right + j * Simd::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const Vector x = Simd::fill(left[r * left_stride + k]);
#pragma GCC unroll 8
            for (int j = 0; j < width; ++j) sums[r][j] = Simd::multiply_add(x, line[j], sums[r][j]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width; ++j) Simd::store(out + r * out_stride + j * Simd::lanes, sums[r][j]);
}

// `multiply` over `columns` (a multiple of 16), in the widest steps that the registers and the columns allow.
template <class Simd>
inline __attribute__((always_inline)) void multiply_columns(std::size_t columns, const float *left,
                                                            std::size_t left_stride, const float *right,
                                                            std::size_t right_stride, std::size_t terms, float *out,
                                                            std::size_t out_stride, const float *factor) {
    constexpr int widest = Simd::widest;
    std::size_t j = 0;
    for (; j + widest * Simd::lanes <= columns; j += widest * Simd::lanes)
        multiply<Simd, widest>(left, left_stride, right + j, right_stride, terms, out + j, out_stride, factor);
    for (; j < columns; j += 16)
        multiply<Simd, 16 / Simd::lanes>(left, left_stride, right + j, right_stride, terms, out + j, out_stride, factor);
}

// One row, normed where a norm is given, times `factor`, into contiguous memory.
template <class Simd>
void copy_row(const float *row, std::size_t dim, const HeadNorm &norm, float factor, float *out) {
    auto mean = Simd::fill(0), scale = Simd::fill(factor);
    if (!norm.weight) {
        for (std::size_t d = 0; d < dim; d += Simd::lanes) Simd::store(out + d, Simd::product(Simd::load(row + d), scale));
        return;
    }
    for (std::size_t d = 0; d < dim; d += Simd::lanes) mean = Simd::sum(mean, Simd::load(row + d));
    mean = Simd::fill(Simd::total(mean) / static_cast<float>(dim));
    auto squares = Simd::fill(0);
    for (std::size_t d = 0; d < dim; d += Simd::lanes) {
        const auto x = Simd::difference(Simd::load(row + d), mean);
        squares = Simd::multiply_add(x, x, squares);
    }
    const auto rstd = Simd::fill(1 / __builtin_sqrtf(Simd::total(squares) / static_cast<float>(dim) + norm.eps));
    for (std::size_t d = 0; d < dim; d += Simd::lanes) {
        const auto x = Simd::product(Simd::difference(Simd::load(row + d), mean), rstd);
        Simd::store(out + d, Simd::product(Simd::multiply_add(x, Simd::load(norm.weight + d), Simd::load(norm.bias + d)), scale));
    }
}

// Scores (base 2) of a row to probabilities under the new maximum; its sum is returned, the maximum updated.
template <class Simd>
float soften(float *scores, std::size_t count, float *maximum) {
    auto largest = Simd::fill(*maximum), other = largest;
    for (std::size_t j = 0; j < count; j += 2 * Simd::lanes) {
        largest = Simd::maximum(largest, Simd::load(scores + j));
        other = Simd::maximum(other, Simd::load(scores + j + Simd::lanes));
    }
    *maximum = Simd::largest(Simd::maximum(largest, other));
    const auto shift = Simd::fill(*maximum);
    auto sum = Simd::fill(0), other_sum = sum;
    for (std::size_t j = 0; j < count; j += 2 * Simd::lanes) {
        const auto a = Simd::exp2(Simd::difference(Simd::load(scores + j), shift));
        const auto b = Simd::exp2(Simd::difference(Simd::load(scores + j + Simd::lanes), shift));
        Simd::store(scores + j, a);
        Simd::store(scores + j + Simd::lanes, b);
        sum = Simd::sum(sum, a);
        other_sum = Simd::sum(other_sum, b);
    }
    return Simd::total(Simd::sum(sum, other_sum));
}

struct Scratch {
    float *keys, *values, *queries, *out, *maxima, *sums, *scores;

    Scratch(float *memory, std::size_t n_queries, std::size_t n_keys, std::size_t dim) {
        const std::size_t rows = rounded_up(n_queries, query_rows);
        keys = memory;
        values = keys + rounded_up(n_keys, panel_keys) * dim;
        queries = values + n_keys * dim;
        out = queries + rows * dim;
        scores = out + rows * dim;
        maxima = scores + query_rows * block_keys;
        sums = maxima + rows;
    }
};

// Keys transposed in panels of 64, values and queries without gaps, queries in units of log2.
template <class Simd>
void pack(const AttentionHead &head, const Scratch &to) {
    const std::size_t dim = head.dim;
    float *row = to.scores;  // free until the first scores; a head's row is shorter than six rows of a block
    for (std::size_t i = 0; i < rounded_up(head.keys, panel_keys); ++i) {
        float *panel = to.keys + i / panel_keys * panel_keys * dim + i % panel_keys;
        if (i < head.keys) copy_row<Simd>(head.k + i * head.k_stride, dim, head.k_norm, 1, row);
        for (std::size_t d = 0; d < dim; ++d) panel[d * panel_keys] = i < head.keys ? row[d] : 0;
    }
    for (std::size_t i = 0; i < head.keys; ++i)
        std::memcpy(to.values + i * dim, head.v + i * head.v_stride, dim * sizeof(float));
    const float log2_e = 1.44269504088896340736f;
    const std::size_t rows = rounded_up(head.queries, query_rows);
    for (std::size_t i = 0; i < head.queries; ++i)
        copy_row<Simd>(head.q + i * head.q_stride, dim, head.q_norm, head.scale * log2_e, to.queries + i * dim);
    std::memset(to.queries + head.queries * dim, 0, (rows - head.queries) * dim * sizeof(float));
    std::memset(to.out, 0, rows * dim * sizeof(float));
    for (std::size_t i = 0; i < rows; ++i) to.maxima[i] = least, to.sums[i] = 0;
}

// Six queries against one block of keys.
template <class Simd>
void attend_block(const Scratch &at, std::size_t first_query, std::size_t first_key, std::size_t keys, std::size_t dim) {
    const std::size_t padded = rounded_up(keys, panel_keys);
    for (std::size_t j = 0; j < padded; j += panel_keys)
        multiply_columns<Simd>(panel_keys, at.queries + first_query * dim, dim, at.keys + (first_key + j) * dim,
                               panel_keys, dim, at.scores + j, block_keys, nullptr);
    float factor[query_rows];
    for (std::size_t r = 0; r < query_rows; ++r) {
        float *scores = at.scores + r * block_keys, *maximum = at.maxima + first_query + r;
        for (std::size_t j = keys; j < padded; ++j) scores[j] = least;
        const float before = *maximum;
        const float sum = soften<Simd>(scores, padded, maximum);
        factor[r] = __builtin_exp2f(before - *maximum);
        at.sums[first_query + r] = at.sums[first_query + r] * factor[r] + sum;
    }
    multiply_columns<Simd>(dim, at.scores, block_keys, at.values + first_key * dim, dim, keys,
                           at.out + first_query * dim, dim, factor);
}

template <class Simd>
void attend(const AttentionHead &head, float *memory) {
    const Scratch at(memory, head.queries, head.keys, head.dim);
    pack<Simd>(head, at);
    for (std::size_t k = 0; k < head.keys; k += block_keys)
        for (std::size_t q = 0; q < head.queries; q += query_rows)
            attend_block<Simd>(at, q, k, head.keys - k < block_keys ? head.keys - k : block_keys, head.dim);
    for (std::size_t i = 0; i < head.queries; ++i)
        for (std::size_t d = 0; d < head.dim; ++d)
            head.out[i * head.out_stride + d] = at.out[i * head.dim + d] / at.sums[i];
}

}  // namespace
