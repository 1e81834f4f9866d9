// Flips and transposes of square planes of 8- or 16-bit values: memory-bound, in 8x8 blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace camae {

#ifdef __SSE2__
inline void transpose_8x8(const std::uint16_t *in, std::ptrdiff_t in_stride, std::uint16_t *out,
                          std::ptrdiff_t out_stride) {
    __m128i r[8], s[8];
    for (int i = 0; i < 8; ++i) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i *>(in + i * in_stride));
    for (int i = 0; i < 4; ++i) {
        s[2 * i] = _mm_unpacklo_epi16(r[i], r[i + 4]);
        s[2 * i + 1] = _mm_unpackhi_epi16(r[i], r[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        r[2 * i] = _mm_unpacklo_epi16(s[i], s[i + 4]);
        r[2 * i + 1] = _mm_unpackhi_epi16(s[i], s[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        s[2 * i] = _mm_unpacklo_epi16(r[i], r[i + 4]);
        s[2 * i + 1] = _mm_unpackhi_epi16(r[i], r[i + 4]);
    }
    for (int i = 0; i < 8; ++i) _mm_storeu_si128(reinterpret_cast<__m128i *>(out + i * out_stride), s[i]);
}
#endif

template <typename T>
void transpose_block(const T *in, std::ptrdiff_t in_stride, T *out, std::ptrdiff_t out_stride, std::size_t rows,
                     std::size_t columns) {
#ifdef __SSE2__
    if constexpr (sizeof(T) == 2) {
        if (rows == 8 && columns == 8) return transpose_8x8(in, in_stride, out, out_stride);
    }
#endif
    for (std::size_t i = 0; i < rows; ++i)
        for (std::size_t j = 0; j < columns; ++j)
            out[static_cast<std::ptrdiff_t>(j) * out_stride + static_cast<std::ptrdiff_t>(i)] =
                in[static_cast<std::ptrdiff_t>(i) * in_stride + static_cast<std::ptrdiff_t>(j)];
}

// out[j][i] = in[i][j], rows of the result in reverse order if `flip_rows`; both planes are n x n and dense.
template <typename T>
void transpose_square(const T *in, T *out, std::size_t n, bool flip_rows) {
    const std::ptrdiff_t stride = flip_rows ? -static_cast<std::ptrdiff_t>(n) : static_cast<std::ptrdiff_t>(n);
    T *const first = flip_rows ? out + (n - 1) * n : out;
    // Result rows outermost: they go to memory in whole lines, the source stays in cache.
    for (std::size_t j = 0; j < n; j += 8)
        for (std::size_t i = 0; i < n; i += 8)
            transpose_block(in + i * n + j, static_cast<std::ptrdiff_t>(n),
                            first + static_cast<std::ptrdiff_t>(j) * stride + static_cast<std::ptrdiff_t>(i), stride,
                            std::min<std::size_t>(8, n - i), std::min<std::size_t>(8, n - j));
}

}  // namespace camae
