// SIMD vectors of float in AVX2 with FMA.
#pragma once

#include <immintrin.h>

#include "cpu_kernels.h"

namespace {

struct Avx2 {
    using Vector = __m256;
    static constexpr int lanes = 8, widest = 2, terms = 1;

    static Vector load(const float *x) { return _mm256_loadu_ps(x); }
    static void store(float *x, Vector a) { _mm256_storeu_ps(x, a); }
    static Vector fill(float x) { return _mm256_set1_ps(x); }
    static Vector sum(Vector a, Vector b) { return _mm256_add_ps(a, b); }
    static Vector difference(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
    static Vector product(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static Vector accumulate(Vector sum, Vector a, Vector b) { return _mm256_fmadd_ps(a, b, sum); }
    static void store_terms(float *x, Vector a) { store(x, a); }
    static Vector quotient(Vector a, Vector b) { return _mm256_div_ps(a, b); }
    static Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
    static Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }

    static float total(Vector a) {
        __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_add_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
    }

    static float largest(Vector a) {
        __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
        x = _mm_max_ps(x, _mm_movehl_ps(x, x));
        return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
    }

    // Arguments are at most 0; under -126 the power would be subnormal, and 2^-126 adds nothing to a sum of 1 or more.
    // The bound comes first, so that NaN is passed on.
    static Vector exp2(Vector x) {
        x = _mm256_max_ps(fill(-126), x);
        const Vector whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Vector rest = _mm256_sub_ps(x, whole);
        Vector power = fill(exp2_terms[6]);
#pragma GCC unroll 6
        for (int i = 5; i >= 0; --i) power = _mm256_fmadd_ps(power, rest, fill(exp2_terms[i]));
        const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127)), 23);
        return _mm256_mul_ps(power, _mm256_castsi256_ps(exponent));
    }
};

}  // namespace
