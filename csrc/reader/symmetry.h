// Flips and transposes of square planes of 8- or 16-bit values, in 8x8 blocks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

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

// Swap the blocks at (i, j) and (j, i) of a dense n x n square, each transposed.
template <typename T>
void swap_transposed(T *square, std::size_t n, std::size_t i, std::size_t j) {
    const auto stride = static_cast<std::ptrdiff_t>(n);
    const std::size_t rows = std::min<std::size_t>(8, n - i), columns = std::min<std::size_t>(8, n - j);
    T *const upper = square + i * n + j, *const lower = square + j * n + i;
    T held[64];
    transpose_block(upper, stride, held, 8, rows, columns);
    if (i != j) transpose_block(lower, stride, upper, stride, columns, rows);
    for (std::size_t c = 0; c < columns; ++c)
        if (rows == 8)
            memcpy(lower + c * n, held + 8 * c, 8 * sizeof(T));
        else
            memcpy(lower + c * n, held + 8 * c, rows * sizeof(T));
}

// Transpose a dense n x n square where it stands. Tiles keep the lines of a column, which share few cache sets, at hand.
template <typename T>
void transpose_in_place(T *square, std::size_t n) {
    constexpr std::size_t tile = 32;
    for (std::size_t top = 0; top < n; top += tile)
        for (std::size_t left = top; left < n; left += tile)
            for (std::size_t i = top; i < std::min(top + tile, n); i += 8)
                for (std::size_t j = std::max(left, i); j < std::min(left + tile, n); j += 8)
                    swap_transposed(square, n, i, j);
}

}  // namespace camae
