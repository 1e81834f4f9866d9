// Matrix-product micro-kernel (six rows by packed columns) and packing of rows, for the CPU kernels.
//
// Included by one file for each instruction set. Everything is in an unnamed namespace and uses no templates of the
// standard library: a copy compiled for AVX-512 must never be the one that another file is linked with.
#pragma once

#include <immintrin.h>

#include <cstring>

#include "cpu_kernels.h"

namespace {

constexpr std::size_t rows_ahead = 16;

// The left factor of a product: the distances between its rows and between its terms.
struct Left {
    const float *first;
    std::size_t row, term;
};

// Inlined (as its caller) because `factor` and the steps are then known: 6 % of the whole.
// out[r][j] = out[r][j] * factor[r] + sum over k of left[r][k] * right[k][j] for six rows and `width` vectors; k counts
// units, of which every one holds Simd::terms of the sum. No factor: the sum alone.
template <class Simd, int width>
CAMAE_INLINE void multiply(Left left, const float *right, std::size_t right_stride, std::size_t count, float *out,
                           std::size_t out_stride, const float *factor) {
    using Vector = typename Simd::Vector;
    constexpr int rows = strip_rows;
    Vector sums[rows][width];
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width; ++j)
            sums[r][j] = factor ? Simd::product(Simd::load(out + r * out_stride + j * Simd::lanes), Simd::fill(factor[r]))
                                : Simd::fill(0);
    for (std::size_t k = 0; k < count; ++k, right += right_stride) {
        Vector line[width];
#pragma GCC unroll 8
        for (int j = 0; j < width; ++j) line[j] = Simd::load(right + j * Simd::lanes);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) {
            const Vector x = Simd::fill(left.first[r * left.row + k * left.term]);
#pragma GCC unroll 8
            for (int j = 0; j < width; ++j) sums[r][j] = Simd::accumulate(sums[r][j], x, line[j]);
        }
    }
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < width; ++j) Simd::store(out + r * out_stride + j * Simd::lanes, sums[r][j]);
}

// `multiply` over `columns` (a multiple of 16), in the widest steps that the registers and the columns allow.
template <class Simd>
CAMAE_INLINE void multiply_columns(std::size_t columns, Left left, const float *right, std::size_t right_stride,
                                   std::size_t count, float *out, std::size_t out_stride, const float *factor) {
    constexpr int widest = Simd::widest;
    std::size_t j = 0;
    for (; j + widest * Simd::lanes <= columns; j += widest * Simd::lanes)
        multiply<Simd, widest>(left, right + j, right_stride, count, out + j, out_stride, factor);
    for (; j < columns; j += 16)
        multiply<Simd, 16 / Simd::lanes>(left, right + j, right_stride, count, out + j, out_stride, factor);
}

template <class Simd, bool packed>
CAMAE_INLINE void store(float *row, std::size_t d, typename Simd::Vector a) {
    if constexpr (packed)
        Simd::store_terms(row + d / Simd::terms, a);
    else
        Simd::store(row + d, a);
}

// One row, normed where a norm is given, times `factor`, into contiguous memory; packed: as products read it.
template <class Simd, bool packed>
void copy_row(const float *row, std::size_t dim, const RowNorm &norm, float factor, float *out) {
    auto mean = Simd::fill(0), scale = Simd::fill(factor);
    if (!norm.weight) {
        for (std::size_t d = 0; d < dim; d += Simd::lanes) store<Simd, packed>(out, d, Simd::product(Simd::load(row + d), scale));
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
        const auto y = Simd::multiply_add(x, Simd::load(norm.weight + d), Simd::load(norm.bias + d));
        store<Simd, packed>(out, d, Simd::product(y, scale));
    }
}

// The rows of a head can lie a page apart, where the processor does not look ahead by itself.
CAMAE_INLINE void prefetch_row(Rows rows, std::size_t i, std::size_t count, std::size_t dim) {
    constexpr std::size_t line = 16;  // floats
    if (i < count)
        for (std::size_t d = 0; d < dim; d += line) __builtin_prefetch(rows[i] + d);
}

// Four rows into four neighboring columns of a panel.
inline void transpose(const float *rows, std::size_t dim, float *panel) {
    for (std::size_t d = 0; d < dim; d += 4) {
        __m128 a = _mm_loadu_ps(rows + d), b = _mm_loadu_ps(rows + dim + d);
        __m128 c = _mm_loadu_ps(rows + 2 * dim + d), e = _mm_loadu_ps(rows + 3 * dim + d);
        _MM_TRANSPOSE4_PS(a, b, c, e);
        float *const to = panel + d * panel_columns;
        _mm_storeu_ps(to, a), _mm_storeu_ps(to + panel_columns, b);
        _mm_storeu_ps(to + 2 * panel_columns, c), _mm_storeu_ps(to + 3 * panel_columns, e);
    }
}

template <class Simd>
void pack_panels(Rows rows, std::size_t count, std::size_t dim, const RowNorm &norm, float *four_rows, float *panels) {
    const std::size_t width = dim / Simd::terms;
    for (std::size_t i = 0; i < rounded_up(count, panel_columns); i += 4) {
        for (std::size_t r = 0; r < 4; ++r) {
            float *const row = four_rows + r * width;
            prefetch_row(rows, i + r + rows_ahead, count, dim);
            if (i + r < count)
                copy_row<Simd, true>(rows[i + r], dim, norm, 1, row);
            else
                std::memset(row, 0, width * sizeof(float));
        }
        transpose(four_rows, width, panels + i / panel_columns * panel_columns * width + i % panel_columns);
    }
}

template <class Simd>
void pack_rows(Rows rows, std::size_t count, std::size_t padded, std::size_t dim, const RowNorm &norm, float factor,
               float *out) {
    const std::size_t width = dim / Simd::terms;
    for (std::size_t i = 0; i < count; ++i) {
        prefetch_row(rows, i + rows_ahead, count, dim);
        copy_row<Simd, true>(rows[i], dim, norm, factor, out + i * width);
    }
    std::memset(out + count * width, 0, (padded - count) * width * sizeof(float));
}

template <class Simd>
void pack_values(Rows rows, std::size_t count, std::size_t dim, float *out) {
    if constexpr (Simd::terms == 1) {
        pack_rows<Simd>(rows, count, count, dim, {}, 1, out);
    } else {
        for (std::size_t i = 0; i < count; i += 2, out += dim) {
            prefetch_row(rows, i + rows_ahead, count, dim), prefetch_row(rows, i + 1 + rows_ahead, count, dim);
            for (std::size_t d = 0; d < dim; d += Simd::lanes) {
                const auto next = i + 1 < count ? Simd::load(rows[i + 1] + d) : Simd::fill(0);
                Simd::store(out + d, Simd::pairs(Simd::load(rows[i] + d), next));
            }
        }
    }
}

}  // namespace
