// FlashAttention forward pass of one head (Dao 2023) on CPUs, tiled for the caches.
//
// Scores of six queries against a block of keys stay in the first-level cache, and only running maxima and sums pass
// from block to block.
#pragma once

#include "attention.h"
#include "products.h"

namespace {

constexpr float least = -1e30f;

// Scores (base 2) of a row to probabilities under the new maximum, packed in place; their sum is returned, the maximum
// updated.
template <class Simd>
float softmax_row(float *scores, std::size_t count, float *maximum) {
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
        Simd::store_terms(scores + j / Simd::terms, a);
        Simd::store_terms(scores + (j + Simd::lanes) / Simd::terms, b);
        sum = Simd::sum(sum, a);
        other_sum = Simd::sum(other_sum, b);
    }
    return Simd::total(Simd::sum(sum, other_sum));
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
    constexpr std::size_t terms = Simd::terms;
    const std::size_t dim = head.dim, width = dim / terms, padded = rounded_up(keys, 2 * Simd::lanes);
    for (std::size_t j = 0; j < padded; j += panel_keys)
        multiply_columns<Simd>(padded - j < panel_keys ? padded - j : panel_keys, {head.queries + first_query * width, width, 1},
                               head.key_panels + (first_key + j) * width, panel_keys, width, at.scores + j, most_keys, nullptr);
    float factor[query_rows];
    for (std::size_t r = 0; r < query_rows; ++r) {
        float *scores = at.scores + r * most_keys, *maximum = at.maxima + first_query + r;
        for (std::size_t j = keys; j < padded; ++j) scores[j] = least;
        const float before = *maximum;
        const float sum = softmax_row<Simd>(scores, padded, maximum);
        factor[r] = __builtin_exp2f(before - *maximum);
        at.sums[first_query + r] = at.sums[first_query + r] * factor[r] + sum;
    }
    multiply_columns<Simd>(dim, {at.scores, most_keys, 1}, head.values + first_key * width, dim, (keys + terms - 1) / terms,
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
        copy_row<Simd, false>(at.out + i * dim, dim, {}, 1 / at.sums[i], head.out[i]);
        if (head.sums) head.sums[i] = at.maxima[i] + __builtin_log2f(at.sums[i]);
    }
}

}  // namespace
