// SIMD vectors of float in AVX-512, products of bfloat16 pairs with sums in float (AVX512_BF16).
#pragma once

#include "simd_avx512.h"

namespace {

struct Avx512Bf16 : Avx512 {
    static constexpr int terms = 2;

    // Both products of each pair; subnormal factors count as 0.
    static Vector accumulate(Vector sum, Vector a, Vector b) {
        return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }

    // Rounded to nearest, ties to even.
    static __m256i rounded(Vector a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)); }

    static void store_terms(float *x, Vector a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(x), rounded(a)); }

    // a's values first in each pair, b's second.
    static Vector pairs(Vector a, Vector b) {
        const __m512i first = _mm512_cvtepu16_epi32(rounded(a)), second = _mm512_cvtepu16_epi32(rounded(b));
        return _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
    }
};

}  // namespace
