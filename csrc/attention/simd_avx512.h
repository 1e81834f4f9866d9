// SIMD vectors of float in AVX-512.
#pragma once

#include <immintrin.h>

#include "cpu_kernels.h"

namespace {

struct Avx512 {
    using Vector = __m512;
    static constexpr int lanes = 16, widest = 4, terms = 1;

    static Vector load(const float *x) { return _mm512_loadu_ps(x); }
    static void store(float *x, Vector a) { _mm512_storeu_ps(x, a); }
    static Vector fill(float x) { return _mm512_set1_ps(x); }
    static Vector sum(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector difference(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
    static Vector product(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
    static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static Vector accumulate(Vector sum, Vector a, Vector b) { return _mm512_fmadd_ps(a, b, sum); }
    static void store_terms(float *x, Vector a) { store(x, a); }
    static Vector quotient(Vector a, Vector b) { return _mm512_div_ps(a, b); }
    static Vector minimum(Vector a, Vector b) { return _mm512_min_ps(a, b); }
    static Vector maximum(Vector a, Vector b) { return _mm512_max_ps(a, b); }
    static float total(Vector a) { return _mm512_reduce_add_ps(a); }
    static float largest(Vector a) { return _mm512_reduce_max_ps(a); }

    static Vector exp2(Vector x) {
        const Vector whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        const Vector rest = _mm512_sub_ps(x, whole);
        Vector power = fill(exp2_terms[6]);
#pragma GCC unroll 6
        for (int i = 5; i >= 0; --i) power = _mm512_fmadd_ps(power, rest, fill(exp2_terms[i]));
        return _mm512_scalef_ps(power, whole);
    }
};

}  // namespace
