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

// The values of one row in reverse order, in place.
template <typename T>
void reverse_row(T *row, std::size_t n) {
    T *front = row, *back = row + n;
#ifdef __SSE2__
    if constexpr (sizeof(T) == 2) {
        const auto reversed = [](const T *at) {
            const __m128i halves = _mm_shufflehi_epi16(
                _mm_shufflelo_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at)), 0x1b), 0x1b);
            return _mm_shuffle_epi32(halves, 0x4e);
        };
        for (; back - front >= 16; front += 8) {
            back -= 8;
            const __m128i first = reversed(front), last = reversed(back);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(front), last);
            _mm_storeu_si128(reinterpret_cast<__m128i *>(back), first);
        }
    }
#endif
    std::reverse(front, back);
}

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

// Values between the starts of two rows of a square that is to be transposed. A power of two would map a column
// to a few cache sets only.
inline std::size_t padded(std::size_t n) { return n + 64; }

// out[j][i] = in[i][j], rows of the result in reverse order if `flip_rows`; n x n, `in` with padded(n) values a row,
// `out` dense.
template <typename T>
void transpose_square(const T *in, T *out, std::size_t n, bool flip_rows) {
    const auto in_stride = static_cast<std::ptrdiff_t>(padded(n)), dense = static_cast<std::ptrdiff_t>(n);
    // Result rows outermost: they go to memory in whole lines, the source stays in cache.
    for (std::size_t j = 0; j < n; j += 8) {
        const auto columns = std::min<std::size_t>(8, n - j);
        const std::size_t row = flip_rows ? n - 1 - j : j;
        for (std::size_t i = 0; i < n; i += 8)
            transpose_block(in + static_cast<std::ptrdiff_t>(i) * in_stride + j, in_stride, out + row * n + i,
                            flip_rows ? -dense : dense, std::min<std::size_t>(8, n - i), columns);
    }
}

}  // namespace camae
