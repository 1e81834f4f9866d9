// Linear layer with bias, GELU and residual fused, on CPUs.
//
// Six rows against 64 columns at a time: sums stay in registers, bias, GELU and residual follow while the result is in
// the first-level cache.
#pragma once

#include "linear.h"
#include "products.h"

namespace {

// x P(x^2) / Q(x^2) is erf(x / sqrt 2) within 1.9e-8 before rounding: least squares reweighted to the smallest largest
// error on [0, 5.6]. All terms are positive, so that rounding stays small; at the limit the quotient rounds to 1.
constexpr float erf_above[] = {0.797884443f,    0.0687518793f,   0.00941448871f,
                               0.000347696491f, 1.27128962e-05f, 4.42901212e-08f};
constexpr float erf_below[] = {1.0f, 0.252833416f, 0.0289399794f, 0.00191296489f, 7.51007581e-05f, 1.18019818e-06f};
constexpr float erf_limit = 5.54001188f;

// x times the normal distribution function of x.
template <class Simd>
CAMAE_INLINE typename Simd::Vector gelu(typename Simd::Vector x) {
    // The bounds come first, so that NaN is passed on.
    const auto near = Simd::maximum(Simd::fill(-erf_limit), Simd::minimum(Simd::fill(erf_limit), x));
    const auto square = Simd::product(near, near);
    auto above = Simd::fill(erf_above[5]), below = Simd::fill(erf_below[5]);
#pragma GCC unroll 5
    for (int i = 4; i >= 0; --i) {
        above = Simd::multiply_add(above, square, Simd::fill(erf_above[i]));
        below = Simd::multiply_add(below, square, Simd::fill(erf_below[i]));
    }
    const auto erf = Simd::quotient(Simd::product(near, above), below);
    const auto half = Simd::product(x, Simd::fill(0.5f));
    return Simd::multiply_add(half, erf, half);
}

template <class Simd, bool with_gelu, bool with_add>
CAMAE_INLINE void finish_row(const float *sums, std::size_t columns, const float *bias, const float *add, float *out) {
    for (std::size_t j = 0; j < columns; j += Simd::lanes) {
        auto y = Simd::load(sums + j);
        if (bias) y = Simd::sum(y, Simd::load(bias + j));
        if (with_gelu) y = gelu<Simd>(y);
        if (with_add) y = Simd::sum(y, Simd::load(add + j));
        store<Simd, with_gelu>(out, j, y);
    }
}

template <class Simd, bool with_gelu, bool with_add>
void apply(const LayerRows &a) {
    const Layer &layer = a.layer;
    const std::size_t width = layer.in / Simd::terms;
    for (std::size_t n = 0; n < layer.out; n += panel_columns) {
        const std::size_t columns = layer.out - n < panel_columns ? layer.out - n : panel_columns;
        const float *const panel = layer.panels + n * width, *const bias = layer.bias ? layer.bias + n : nullptr;
        for (std::size_t t = 0; t < a.count; t += strip_rows) {
            alignas(64) float sums[strip_rows * panel_columns];
            multiply_columns<Simd>(columns, {a.rows + t * width, width, 1}, panel, panel_columns, width, sums,
                                   panel_columns, nullptr);
            const std::size_t rows = a.count - t < strip_rows ? a.count - t : strip_rows;
            for (std::size_t r = 0; r < rows; ++r)
                finish_row<Simd, with_gelu, with_add>(sums + r * panel_columns, columns, bias,
                                                      with_add ? a.add[t + r] + n : nullptr, a.out[t + r] + (with_gelu ? n / Simd::terms : n));
        }
    }
}

template <class Simd>
void apply_layer(const LayerRows &a) {
    if (a.gelu)
        a.add.first ? apply<Simd, true, true>(a) : apply<Simd, true, false>(a);
    else
        a.add.first ? apply<Simd, false, true>(a) : apply<Simd, false, false>(a);
}

}  // namespace
