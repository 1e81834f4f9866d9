// FlashAttention backward pass of one head on CPUs, tiled for the caches.
//
// Probabilities and their gradients of a block of queries and keys stay in the second-level cache, from where the three
// gradients take them. Five products, all of `multiply`.
#pragma once

#include "attention_kernel.h"

namespace {

constexpr float ones[query_rows] = {1, 1, 1, 1, 1, 1};

struct GradientScratch {
    float *key_panels, *value_panels, *keys, *queries, *grad, *dq, *dk, *dv, *sums, *deltas, *p, *ds;

    GradientScratch(float *memory, std::size_t n_queries, std::size_t n_keys, std::size_t dim) {
        const std::size_t rows = rounded_up(n_queries, query_rows) * dim, key_rows = rounded_up(n_keys, query_rows) * dim;
        key_panels = memory;
        value_panels = key_panels + rounded_up(n_keys, panel_keys) * dim;
        keys = value_panels + rounded_up(n_keys, panel_keys) * dim;
        dk = keys + key_rows;
        dv = dk + key_rows;
        queries = dv + key_rows;
        grad = queries + rows;
        dq = grad + rows;
        sums = dq + rows;
        deltas = sums + rounded_up(n_queries, query_rows);
        p = deltas + rounded_up(n_queries, query_rows);
        ds = p + gradient_queries * gradient_keys;
    }
};

// Probabilities in place of a row of scores, the gradient of the scores in place of that of the probabilities.
template <class Simd>
void softmax_gradient_row(float *p, float *ds, std::size_t count, float sum, float delta) {
    const auto shift = Simd::fill(sum), mean = Simd::fill(delta);
    for (std::size_t j = 0; j < count; j += Simd::lanes) {
        const auto probability = Simd::exp2(Simd::difference(Simd::load(p + j), shift));
        Simd::store(p + j, probability);
        Simd::store(ds + j, Simd::product(probability, Simd::difference(Simd::load(ds + j), mean)));
    }
}

template <class Simd>
void attend_block_backward(const GradientScratch &at, std::size_t first_query, std::size_t queries,
                           std::size_t first_key, std::size_t keys, std::size_t dim) {
    constexpr std::size_t stride = gradient_keys;
    const std::size_t padded = rounded_up(keys, panel_keys);
    for (std::size_t i = 0; i < queries; i += query_rows) {
        const std::size_t q = first_query + i;
        for (std::size_t j = 0; j < padded; j += panel_keys) {
            const std::size_t panel = (first_key + j) * dim;
            multiply_columns<Simd>(panel_keys, {at.queries + q * dim, dim, 1}, at.key_panels + panel, panel_keys, dim,
                                   at.p + i * stride + j, stride, nullptr);
            multiply_columns<Simd>(panel_keys, {at.grad + q * dim, dim, 1}, at.value_panels + panel, panel_keys, dim,
                                   at.ds + i * stride + j, stride, nullptr);
        }
        for (std::size_t r = 0; r < query_rows; ++r)
            softmax_gradient_row<Simd>(at.p + (i + r) * stride, at.ds + (i + r) * stride, padded, at.sums[q + r],
                                  at.deltas[q + r]);
        multiply_columns<Simd>(dim, {at.ds + i * stride, stride, 1}, at.keys + first_key * dim, dim, keys,
                               at.dq + q * dim, dim, ones);
    }
    // Six keys at a time. Past the last key the sums are of no meaning and go to rows that nobody reads.
    for (std::size_t j = 0; j < keys; j += query_rows) {
        const std::size_t row = (first_key + j) * dim, from = first_query * dim;
        multiply_columns<Simd>(dim, {at.p + j, 1, stride}, at.grad + from, dim, queries, at.dv + row, dim, ones);
        multiply_columns<Simd>(dim, {at.ds + j, 1, stride}, at.queries + from, dim, queries, at.dk + row, dim, ones);
    }
}

// The mean of the probabilities' gradient under the probabilities, which is grad . out.
template <class Simd>
float dot(const float *a, const float *b, std::size_t dim) {
    auto sum = Simd::fill(0);
    for (std::size_t d = 0; d < dim; d += Simd::lanes) sum = Simd::multiply_add(Simd::load(a + d), Simd::load(b + d), sum);
    return Simd::total(sum);
}

template <class Simd>
void copy_out(const float *rows, std::size_t count, std::size_t dim, float factor, ResultRows out) {
    for (std::size_t i = 0; i < count; ++i) copy_row<Simd, false>(rows + i * dim, dim, {}, factor, out[i]);
}

template <class Simd>
void attend_backward(const AttentionGradient &head, float *memory) {
    const std::size_t dim = head.dim, rows = rounded_up(head.queries, query_rows);
    const GradientScratch at(memory, head.queries, head.keys, dim);
    pack_panels<Simd>(head.k, head.keys, dim, {}, at.p, at.key_panels);
    pack_panels<Simd>(head.v, head.keys, dim, {}, at.p, at.value_panels);
    pack_rows<Simd>(head.k, head.keys, rounded_up(head.keys, strip_rows), dim, {}, 1, at.keys);
    pack_rows<Simd>(head.q, head.queries, rounded_up(head.queries, strip_rows), dim, {}, head.scale * log2_e, at.queries);
    pack_rows<Simd>(head.grad, head.queries, rounded_up(head.queries, strip_rows), dim, {}, 1, at.grad);
    std::memset(at.dq, 0, rows * dim * sizeof(float));
    std::memset(at.dk, 0, 2 * rounded_up(head.keys, query_rows) * dim * sizeof(float));  // and dv behind it
    for (std::size_t i = 0; i < rows; ++i) {
        at.sums[i] = i < head.queries ? head.sums[i] : 0;
        at.deltas[i] = i < head.queries ? dot<Simd>(head.grad[i], head.out[i], dim) : 0;
    }
    for (std::size_t q = 0; q < head.queries; q += gradient_queries)
        for (std::size_t k = 0; k < head.keys; k += gradient_keys)
            attend_block_backward<Simd>(at, q, head.queries - q < gradient_queries ? head.queries - q : gradient_queries,
                                        k, head.keys - k < gradient_keys ? head.keys - k : gradient_keys, dim);
    copy_out<Simd>(at.dq, head.queries, dim, head.scale, head.dq);
    copy_out<Simd>(at.dk, head.keys, dim, 1 / log2_e, head.dk);  // the queries were packed in units of log2
    copy_out<Simd>(at.dv, head.keys, dim, 1, head.dv);
}

}  // namespace
