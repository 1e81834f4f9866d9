// FlashAttention's forward pass for one head (Dao 2023), for a CPU: scores of six queries against a block of keys
// stay in the first-level cache, and only running maxima and sums pass from block to block.
//
// With attention_gradient.h included by one file for each instruction set. Everything is in an unnamed namespace and uses no templates of
// the standard library: a copy compiled for AVX-512 must never be the one that another file is linked with.
#pragma once

#include <cstring>

#include "attention.h"

namespace {

constexpr std::size_t query_rows = attention_query_rows, panel_keys = attention_panel_keys;
constexpr std::size_t block_keys = 512;  // its scores (12 KiB) fit the first-level cache, its K and V the second
constexpr std::size_t most_keys = block_keys + panel_keys;  // the last block takes a small rest with it
constexpr std::size_t rows_ahead = 16;
constexpr float least = -1e30f;

// 2^r on [-1/2, 1/2]: interpolation at Chebyshev nodes, relative error 2.5e-9 before rounding.
constexpr float exp2_terms[] = {1.0f,           0.693147207f,   0.240226509f,  0.0555032723f,
                                0.00961805668f, 0.00134004282f, 0.000154614447f};

// The left factor of a product: the distances between its rows and between its terms.
struct Left {
    const float *first;
    std::size_t row, term;
};

// Inlined (as its caller) because `factor` and the steps are then known: 6 % of the whole.
// out[r][j] = out[r][j] * factor[r] + sum over k of left[r][k] * right[k][j] for six rows and `width` vectors.
// No factor: the sum alone.
template <class Simd, int width>
CAMAE_INLINE void multiply(Left left, const float *right, std::size_t right_stride, std::size_t terms, float *out,
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
            const Vector x = Simd::fill(left.first[r * left.row + k * left.term]);
#pragma GCC unroll 8
            for (int j = 0; j < width; ++j) sums[r][j] = Simd::multiply_add(x, line[j], sums[r][j]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width; ++j) Simd::store(out + r * out_stride + j * Simd::lanes, sums[r][j]);
}

// `multiply` over `columns` (a multiple of 16), in the widest steps that the registers and the columns allow.
template <class Simd>
CAMAE_INLINE void multiply_columns(std::size_t columns, Left left, const float *right, std::size_t right_stride,
                                   std::size_t terms, float *out, std::size_t out_stride, const float *factor) {
    constexpr int widest = Simd::widest;
    std::size_t j = 0;
    for (; j + widest * Simd::lanes <= columns; j += widest * Simd::lanes)
        multiply<Simd, widest>(left, right + j, right_stride, terms, out + j, out_stride, factor);
    for (; j < columns; j += 16)
        multiply<Simd, 16 / Simd::lanes>(left, right + j, right_stride, terms, out + j, out_stride, factor);
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

// The rows of a head can lie a page apart, where the processor does not look ahead by itself.
CAMAE_INLINE void prefetch_row(Rows rows, std::size_t i, std::size_t count, std::size_t dim) {
    constexpr std::size_t line = 16;  // floats
    if (i < count)
        for (std::size_t d = 0; d < dim; d += line) __builtin_prefetch(rows[i] + d);
}

template <class Simd>
void pack_panels(Rows rows, std::size_t count, std::size_t dim, const HeadNorm &norm, float *row, float *panels) {
    for (std::size_t i = 0; i < rounded_up(count, panel_keys); ++i) {
        float *panel = panels + i / panel_keys * panel_keys * dim + i % panel_keys;
        prefetch_row(rows, i + rows_ahead, count, dim);
        if (i < count) copy_row<Simd>(rows[i], dim, norm, 1, row);
        for (std::size_t d = 0; d < dim; ++d) panel[d * panel_keys] = i < count ? row[d] : 0;
    }
}

template <class Simd>
void pack_rows(Rows rows, std::size_t count, std::size_t dim, const HeadNorm &norm, float factor, float *out) {
    for (std::size_t i = 0; i < count; ++i) {
        prefetch_row(rows, i + rows_ahead, count, dim);
        copy_row<Simd>(rows[i], dim, norm, factor, out + i * dim);
    }
    std::memset(out + count * dim, 0, (rounded_up(count, query_rows) - count) * dim * sizeof(float));
}

struct Scratch {
    float *out, *maxima, *sums, *scores;

    Scratch(float *memory, std::size_t queries, std::size_t dim) {
        const std::size_t rows = rounded_up(queries, query_rows);
        scores = memory;
        out = scores + query_rows * most_keys;
        maxima = out + rows * dim;
        sums = maxima + rows;
    }
};

// Six queries against one block of keys.
template <class Simd>
CAMAE_INLINE void attend_block(const AttentionHead &head, const Scratch &at, std::size_t first_query,
                               std::size_t first_key, std::size_t keys) {
    const std::size_t dim = head.dim, padded = rounded_up(keys, 2 * Simd::lanes);
    for (std::size_t j = 0; j < padded; j += panel_keys)
        multiply_columns<Simd>(padded - j < panel_keys ? padded - j : panel_keys, {head.queries + first_query * dim, dim, 1},
                               head.key_panels + (first_key + j) * dim, panel_keys, dim, at.scores + j, most_keys, nullptr);
    float factor[query_rows];
    for (std::size_t r = 0; r < query_rows; ++r) {
        float *scores = at.scores + r * most_keys, *maximum = at.maxima + first_query + r;
        for (std::size_t j = keys; j < padded; ++j) scores[j] = least;
        const float before = *maximum;
        const float sum = soften<Simd>(scores, padded, maximum);
        factor[r] = __builtin_exp2f(before - *maximum);
        at.sums[first_query + r] = at.sums[first_query + r] * factor[r] + sum;
    }
    multiply_columns<Simd>(dim, {at.scores, most_keys, 1}, head.values + first_key * dim, dim, keys,
                           at.out + first_query * dim, dim, factor);
}

template <class Simd>
void attend(const AttentionHead &head, float *memory) {
    const std::size_t dim = head.dim, rows = rounded_up(head.query_count, query_rows);
    const Scratch at(memory, head.query_count, dim);
    std::memset(at.out, 0, rows * dim * sizeof(float));
    for (std::size_t i = 0; i < rows; ++i) at.maxima[i] = least, at.sums[i] = 0;
    for (std::size_t k = 0, keys; k < head.key_count; k += keys) {
        keys = head.key_count - k <= most_keys ? head.key_count - k : block_keys;
        for (std::size_t q = 0; q < rows; q += query_rows) attend_block<Simd>(head, at, q, k, keys);
    }
    for (std::size_t i = 0; i < head.query_count; ++i) {
        copy_row<Simd>(at.out + i * dim, dim, {}, 1 / at.sums[i], head.out[i]);
        head.sums[i] = at.maxima[i] + __builtin_log2f(at.sums[i]);
    }
}

}  // namespace
