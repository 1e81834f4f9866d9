// Multi-head attention over packed sequences on CPUs: forward, self-attention from tokens, backward; threading.
#include "attention.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "instructions.h"
#include "threads.h"

namespace py = pybind11;

// Output rows with a maximum and a sum each, and one block of scores.
std::size_t attention_scratch(std::size_t queries, std::size_t dim) {
    return rounded_up(queries, query_rows) * (dim + 2) + query_rows * most_keys;
}

// Panels of K and V; K, dK and dV; Q, dO and dQ with a sum and a delta each; a block of P and of dS.
std::size_t attention_gradient_scratch(std::size_t queries, std::size_t keys, std::size_t dim) {
    return 2 * rounded_up(keys, panel_keys) * dim + 3 * rounded_up(keys, query_rows) * dim +
           rounded_up(queries, query_rows) * (3 * dim + 2) + 2 * gradient_queries * gradient_keys;
}

namespace {

using namespace camae_arrays;
using Bounds = py::array_t<std::int64_t, py::array::c_style>;

// (T, H, d) with the head dim contiguous.
void check(const Array &x, const char *name, const Array &like) {
    if (x.ndim() != 3 || x.shape(1) != like.shape(1) || x.shape(2) != like.shape(2) || x.shape(2) % width_step != 0)
        throw std::invalid_argument(std::string(name) + ": (T, H, d) of equal H and d, d a multiple of 16");
    if (x.shape(0) > 0 && x.strides(2) != sizeof(float))
        throw std::invalid_argument(std::string(name) + ": the head dim must be contiguous");
}

void check_result(const Array &x, const char *name, const Array &like) {
    check(x, name, like);
    if (x.shape(0) != like.shape(0) || !(x.flags() & py::array::c_style) || !x.writeable())
        throw std::invalid_argument(std::string(name) + ": contiguous, of the shape of what it belongs to");
}

void check_bounds(const Bounds &bounds, py::ssize_t rows, const char *name) {
    const auto *at = bounds.data();
    const auto n = bounds.size();
    if (n < 1 || at[0] != 0 || at[n - 1] != rows || !std::is_sorted(at, at + n))
        throw std::invalid_argument(std::string(name) + ": must rise from 0 to the number of rows");
}

void check_sums(const Array &sums, const Array &q) {
    if (sums.ndim() != 2 || sums.shape(0) != q.shape(1) || sums.shape(1) != q.shape(0) ||
        !(sums.flags() & py::array::c_style))
        throw std::invalid_argument("sums: (H, T), contiguous");
}

// One head of a packed (T, H, d) array, from row t on.
Rows rows_of(const Array &x, std::size_t t, std::size_t h) {
    const std::size_t row = x.strides(0) / sizeof(float), head = x.strides(1) / sizeof(float);
    return {x.data() + t * row + h * head, row};
}

ResultRows results_of(const Array &x, float *first, std::size_t t, std::size_t h) {
    const std::size_t heads = x.shape(1), dim = x.shape(2);
    return {first + (t * heads + h) * dim, heads * dim};
}

void clear(ResultRows rows, std::size_t count, std::size_t dim) {
    for (std::size_t i = 0; i < count; ++i) std::memset(rows[i], 0, dim * sizeof(float));
}

// The sequences of a packed batch.
struct Sequences {
    const std::int64_t *q, *k;
    std::size_t count, longest_q = 0, longest_k = 0;

    Sequences(const Bounds &bounds_q, const Bounds &bounds_k)
        : q(bounds_q.data()), k(bounds_k.data()), count(bounds_q.size() - 1) {
        for (std::size_t b = 0; b < count; ++b) {
            longest_q = std::max<std::size_t>(longest_q, q[b + 1] - q[b]);
            longest_k = std::max<std::size_t>(longest_k, k[b + 1] - k[b]);
        }
    }
};

void check_inputs(const Array &q, const Array &k, const Array &v, const Bounds &bounds_q, const Bounds &bounds_k) {
    check(q, "q", q), check(k, "k", q), check(v, "v", k);
    check_bounds(bounds_q, q.shape(0), "bounds_q"), check_bounds(bounds_k, k.shape(0), "bounds_k");
    if (v.shape(0) != k.shape(0) || bounds_q.size() != bounds_k.size())
        throw std::invalid_argument("k and v need equal rows, queries and keys equally many sequences");
}

thread_local ScratchBuffer packed_buffer;

constexpr std::size_t fewest_queries = 192, most_queries = 4096;  // of a head in one task
constexpr std::size_t most_band_rows = 192;     // rows packed by one task: a multiple of both of the kernels' steps
constexpr std::size_t packed_floats = 4 << 20;  // what a round packs where that is enough: half of a last-level cache
constexpr std::size_t small_floats = 1 << 20;   // a sequence that packs no more goes to a thread whole where there are many

// The heads [first_head, last_head) of the sequences [first, last): what is packed and computed together.
struct Round {
    std::size_t first, last, first_head, last_head;
};

// A band of a sequence, at most `rows` from `begin` on, that are to be packed for the heads of a round: head h at
// to + (h - first) * stride.
struct Band {
    std::size_t b, begin, rows;
    const Round &round;
    float *to;
    std::size_t stride;
};

// What becomes of the rows on their way, and where results go.
struct Forward {
    const CpuKernels &kernels;
    std::size_t threads, heads, dim, rows;
    RowNorm q_norm, k_norm;
    float scale;
    float *out, *sums;  // no sums: nobody asks for them
};

// The forward pass over a packed batch. Many small sequences go to the threads whole. Others in rounds: first rows are
// packed, band after band so that memory is read in order (packed head after head it was 10 % of the whole), then come
// the heads, some queries at a time.
class ForwardPass {
  public:
    ForwardPass(const Forward &what, const Sequences &sequences) : what(what), sequences(sequences) {}

    // `pack_band(band, memory)` packs q, k and v of a band with the functions below, given `scratch` floats.
    template <class PackBand>
    void run(bool whole_sequences, std::size_t scratch, const PackBand &pack_band) const {
        const std::size_t heads = what.heads;
        for (std::size_t b = 0; b < sequences.count;) {
            std::size_t small = b;
            while (small < sequences.count && floats_of_head(small) * heads <= small_floats) ++small;
            if (small - b >= 4 * what.threads) {
                run_whole(b, small, scratch, pack_band);
                b = small;
                continue;
            }
            const std::size_t one = std::max<std::size_t>(floats_of_head(b), 1);
            if (one * heads > packed_floats) {
                const std::size_t step = whole_sequences ? heads : std::max<std::size_t>(packed_floats / one, 1);
                for (std::size_t h = 0; h < heads; h += step)
                    run({b, b + 1, h, std::min(h + step, heads)}, scratch, pack_band);
                ++b;
                continue;
            }
            std::size_t last = b, size = 0;
            while (last < sequences.count && (size += floats_of_head(last) * heads) <= packed_floats) ++last;
            run({b, last, 0, heads}, scratch, pack_band);
            b = last;
        }
    }

    std::size_t queries_of(std::size_t b) const { return sequences.q[b + 1] - sequences.q[b]; }
    std::size_t keys_of(std::size_t b) const { return sequences.k[b + 1] - sequences.k[b]; }

    void pack_keys(const Band &band, std::size_t h, Rows rows, float *four_rows) const {
        what.kernels.pack_panels(rows, count_of(band, keys_of(band.b)), what.dim, what.k_norm, four_rows,
                                 place(band, h));
    }

    void pack_values(const Band &band, std::size_t h, Rows rows) const {
        const std::size_t count = count_of(band, keys_of(band.b));
        what.kernels.pack_values(rows, count, what.dim, place(band, h) + panel_floats(band.b));
    }

    void pack_queries(const Band &band, std::size_t h, Rows rows) const {
        const std::size_t queries = queries_of(band.b), count = count_of(band, queries);
        if (count == 0) return;
        const std::size_t padded = band.begin + count == queries ? rounded_up(queries, strip_rows) - band.begin : count;
        what.kernels.pack_rows(rows, count, padded, what.dim, what.q_norm, what.scale * log2_e,
                               place(band, h) + panel_floats(band.b) + value_floats(band.b));
    }

  private:
    const Forward &what;
    const Sequences &sequences;

    // A packed head: its key panels, its values, its queries.
    std::size_t width() const { return what.dim / what.kernels.terms; }
    std::size_t panel_floats(std::size_t b) const { return rounded_up(keys_of(b), panel_columns) * width(); }
    std::size_t value_floats(std::size_t b) const { return rounded_up(keys_of(b), what.kernels.terms) * width(); }
    std::size_t query_floats(std::size_t b) const { return rounded_up(queries_of(b), strip_rows) * width(); }
    std::size_t floats_of_head(std::size_t b) const { return panel_floats(b) + value_floats(b) + query_floats(b); }

    float *place(const Band &band, std::size_t h) const {
        return band.to + (h - band.round.first_head) * band.stride + band.begin * width();
    }

    static std::size_t count_of(const Band &band, std::size_t rows) {
        return band.begin < rows ? std::min(band.rows, rows - band.begin) : 0;
    }

    template <class PackBand>
    void run(const Round &round, std::size_t band_scratch, const PackBand &pack_band) const {
        const std::size_t count = round.last - round.first, heads = round.last_head - round.first_head;
        std::vector<std::size_t> starts{0};
        std::size_t longest = 0, longest_q = 0, rows = 0;
        for (std::size_t b = round.first; b < round.last; ++b) {
            starts.push_back(starts.back() + floats_of_head(b) * heads);
            longest_q = std::max(longest_q, queries_of(b));
            longest = std::max({longest, longest_q, keys_of(b)});
            rows += std::max(queries_of(b), keys_of(b));
        }
        float *const packed = packed_buffer.floats(starts.back());
        if (!packed) throw std::bad_alloc();
        // Panels are whole in smaller bands too, which are for when there are few rows for each thread.
        const std::size_t band_rows = rows < 3 * most_band_rows * what.threads ? panel_columns : most_band_rows;
        const std::size_t bands = (longest + band_rows - 1) / band_rows;
        run_tasks(count * bands, what.threads, band_scratch, [&](std::size_t task, float *memory) {
            const std::size_t b = round.first + task / bands, begin = task % bands * band_rows;
            if (begin < std::max(queries_of(b), keys_of(b)))
                pack_band(Band{b, begin, band_rows, round, packed + starts[task / bands], floats_of_head(b)}, memory);
        });
        const std::size_t step = queries_at_once(longest_q, heads * count);
        const std::size_t parts = (longest_q + step - 1) / step;
        const std::size_t scratch = attention_scratch(std::min(step, longest_q), what.dim);
        run_tasks(count * heads * parts, what.threads, scratch, [&](std::size_t task, float *memory) {
            const std::size_t i = task / (heads * parts), b = round.first + i, h = task / parts % heads;
            attend(b, round.first_head + h, task % parts * step, step, packed + starts[i] + h * floats_of_head(b), memory);
        });
    }

    // The sequences [first, last), one a task.
    template <class PackBand>
    void run_whole(std::size_t first, std::size_t last, std::size_t band_scratch, const PackBand &pack_band) const {
        std::size_t packed = 0, scratch = 0;
        for (std::size_t b = first; b < last; ++b) {
            packed = std::max(packed, floats_of_head(b) * what.heads);
            scratch = std::max(scratch, attention_scratch(queries_of(b), what.dim));
        }
        scratch = std::max(scratch, band_scratch);
        run_tasks(last - first, what.threads, packed + scratch, [&](std::size_t task, float *memory) {
            const std::size_t b = first + task, head = floats_of_head(b), rows = std::max(queries_of(b), keys_of(b));
            const Round round{b, b + 1, 0, what.heads};
            for (std::size_t begin = 0; begin < rows; begin += most_band_rows)
                pack_band(Band{b, begin, most_band_rows, round, memory, head}, memory + packed);
            for (std::size_t h = 0; h < what.heads; ++h)
                attend(b, h, 0, queries_of(b), memory + h * head, memory + packed);
        });
    }

    // Queries of a head at once: some two dozen tasks for each thread, so that none waits long for the last one.
    std::size_t queries_at_once(std::size_t longest, std::size_t tasks) const {
        const std::size_t parts = (24 * what.threads + tasks - 1) / std::max<std::size_t>(tasks, 1);
        const std::size_t even = longest / std::max<std::size_t>(parts, 1) + 1;
        return rounded_up(std::min(std::max(even, fewest_queries), most_queries), strip_rows);
    }

    void attend(std::size_t b, std::size_t h, std::size_t begin, std::size_t most, const float *packed,
                float *memory) const {
        if (begin >= queries_of(b)) return;
        const std::size_t count = std::min(most, queries_of(b) - begin), keys = keys_of(b), dim = what.dim;
        const std::size_t t = sequences.q[b] + begin, stride = what.heads * dim;
        const ResultRows result{what.out + t * stride + h * dim, stride};
        float *const sums = what.sums ? what.sums + h * what.rows + t : nullptr;
        if (keys == 0) {
            clear(result, count, dim);
            if (sums) std::fill(sums, sums + count, -std::numeric_limits<float>::infinity());
            return;
        }
        const float *const values = packed + panel_floats(b), *const queries = values + value_floats(b);
        what.kernels.attend({queries + begin * width(), packed, values, result, sums, count, keys, dim}, memory);
    }
};

void attention(const Array &q, const Array &k, const Array &v, Array out, Array sums, const Bounds &bounds_q,
               const Bounds &bounds_k, float scale, const Maybe &q_norm,
               const Maybe &k_norm, float eps, int threads, const std::string &instructions) {
    check_inputs(q, k, v, bounds_q, bounds_k);
    check_result(out, "out", q), check_sums(sums, q);
    const Sequences sequences(bounds_q, bounds_k);
    const std::size_t heads = q.shape(1), dim = q.shape(2), rows = q.shape(0);
    const Forward what{kernels_of(instructions), threads_for(threads), heads, dim, rows, norm_of(q_norm, dim, eps),
                       norm_of(k_norm, dim, eps), scale, out.mutable_data(), sums.mutable_data()};
    const ForwardPass pass(what, sequences);
    py::gil_scoped_release release;
    pass.run(false, 4 * dim, [&](const Band &band, float *four_rows) {
        const std::size_t query = sequences.q[band.b] + band.begin, key = sequences.k[band.b] + band.begin;
        for (std::size_t h = band.round.first_head; h < band.round.last_head; ++h) {
            pass.pack_keys(band, h, rows_of(k, key, h), four_rows);
            pass.pack_values(band, h, rows_of(v, key, h));
            pass.pack_queries(band, h, rows_of(q, query, h));
        }
    });
}

// Self-attention from the tokens on: LayerNorm, the products of q, k and v, and attention. They are packed out of the
// cache: q, k and v are never in memory as such.
void self_attention(const Array &x, const Maybe &norm, float eps, const Array &q_panels, const Array &k_panels,
                    const Array &v_panels, const Maybe &bias, std::size_t heads, const Maybe &q_norm,
                    const Maybe &k_norm, float head_eps, const Bounds &bounds, float scale, Array out, int threads,
                    const std::string &instructions) {
    if (x.ndim() != 2 || heads == 0 || width(x, 1) % heads != 0 || width(x, 1) / heads % width_step != 0)
        throw std::invalid_argument("x: (T, D), D the heads times a multiple of 16");
    const auto &kernels = kernels_of(instructions);
    const std::size_t rows = width(x, 0), width_D = width(x, 1), dim = width_D / heads;
    const Rows tokens = matrix_rows(x, rows, width_D, "x");
    matrix_rows(out, rows, width_D, "out");
    if (!contiguous(out)) throw std::invalid_argument("out: must be contiguous");
    check_bounds(bounds, x.shape(0), "bounds");
    if (bias && (bias->ndim() != 1 || width(*bias, 0) != 3 * width_D || !contiguous(*bias)))
        throw std::invalid_argument("bias: those of q, k and v, (3 D,)");
    Layer layers[] = {layer_of(q_panels, {}, width_D, width_D, kernels, "q"),
                      layer_of(k_panels, {}, width_D, width_D, kernels, "k"),
                      layer_of(v_panels, {}, width_D, width_D, kernels, "v")};
    for (std::size_t i = 0; i < 3 && bias; ++i) layers[i].bias = bias->data() + i * width_D;
    const RowNorm token_norm = norm_of(norm, width_D, eps);
    const Sequences sequences(bounds, bounds);
    const Forward what{kernels, threads_for(threads), heads, dim, rows, norm_of(q_norm, dim, head_eps),
                       norm_of(k_norm, dim, head_eps), scale, out.mutable_data(), nullptr};
    const ForwardPass pass(what, sequences);
    py::gil_scoped_release release;
    pass.run(true, 2 * most_band_rows * width_D + 4 * dim, [&](const Band &band, float *normed) {
        float *const projected = normed + most_band_rows * width_D;
        float *const four_rows = projected + most_band_rows * width_D;
        const std::size_t t = sequences.q[band.b] + band.begin;
        const std::size_t count = std::min(band.rows, pass.queries_of(band.b) - band.begin);
        kernels.pack_rows({tokens[t], tokens.stride}, count, rounded_up(count, strip_rows), width_D, token_norm, 1,
                          normed);
        for (std::size_t part = 0; part < 3; ++part) {
            kernels.apply_layer({normed, count, layers[part], false, {nullptr, 0}, {projected, width_D}});
            for (std::size_t h = 0; h < heads; ++h) {
                const Rows head{projected + h * dim, width_D};
                if (part == 0) pass.pack_queries(band, h, head);
                if (part == 1) pass.pack_keys(band, h, head, four_rows);
                if (part == 2) pass.pack_values(band, h, head);
            }
        }
    });
}

void attention_backward(const Array &grad, const Array &q, const Array &k, const Array &v, const Array &out,
                        const Array &sums, Array dq, Array dk, Array dv, const Bounds &bounds_q, const Bounds &bounds_k,
                        float scale, int threads, const std::string &instructions) {
    check_inputs(q, k, v, bounds_q, bounds_k);
    check(grad, "grad", q), check(out, "out", q), check_sums(sums, q);
    if (grad.shape(0) != q.shape(0) || out.shape(0) != q.shape(0))
        throw std::invalid_argument("grad and out need the rows of q");
    check_result(dq, "dq", q), check_result(dk, "dk", k), check_result(dv, "dv", v);
    const auto &kernels = kernels_of(instructions);
    if (!kernels.attend_backward) throw std::invalid_argument("no backward pass in '" + instructions + "'");
    const Sequences sequences(bounds_q, bounds_k);
    const std::size_t heads = q.shape(1), dim = q.shape(2), T = q.shape(0);
    float *const to_q = dq.mutable_data(), *const to_k = dk.mutable_data(), *const to_v = dv.mutable_data();
    const std::size_t scratch = attention_gradient_scratch(sequences.longest_q, sequences.longest_k, dim);
    py::gil_scoped_release release;
    run_tasks(sequences.count * heads, threads_for(threads), scratch, [&](std::size_t task, float *memory) {
        const std::size_t b = task / heads, h = task % heads, first = sequences.q[b], first_key = sequences.k[b];
        const std::size_t queries = sequences.q[b + 1] - first, keys = sequences.k[b + 1] - first_key;
        const ResultRows results[] = {results_of(q, to_q, first, h), results_of(k, to_k, first_key, h),
                                      results_of(v, to_v, first_key, h)};
        if (queries == 0 || keys == 0) {
            clear(results[0], queries, dim), clear(results[1], keys, dim), clear(results[2], keys, dim);
            return;
        }
        kernels.attend_backward({rows_of(q, first, h), rows_of(k, first_key, h), rows_of(v, first_key, h),
                          rows_of(out, first, h), rows_of(grad, first, h), sums.data() + h * T + first, results[0],
                          results[1], results[2], queries, keys, dim, scale},
                         memory);
    });
}

}  // namespace

void bind_attention(py::module_ &m) {
    m.def("attention", &attention, py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
          py::arg("out").noconvert(), py::arg("sums").noconvert(), py::arg("bounds_q"), py::arg("bounds_k"),
          py::arg("scale"), py::arg("q_norm").none(true), py::arg("k_norm").none(true), py::arg("eps"),
          py::arg("threads"), py::arg("instructions"),
          "attention(q, k, v, out, sums, bounds_q, bounds_k, scale, q_norm, k_norm, eps, threads, instructions)\n"
          "(T, H, d) float32; sums (H, T): log2 of the softmax denominators. bounds: where sequences begin, and the\n"
          "end; norms: (2, d) weight and bias, or None.");
    m.def("self_attention", &self_attention, py::arg("x").noconvert(), py::arg("norm").none(true), py::arg("eps"),
          py::arg("q_panels").noconvert(), py::arg("k_panels").noconvert(), py::arg("v_panels").noconvert(),
          py::arg("bias").none(true), py::arg("heads"), py::arg("q_norm").none(true), py::arg("k_norm").none(true),
          py::arg("head_eps"), py::arg("bounds"), py::arg("scale"), py::arg("out").noconvert(), py::arg("threads"),
          py::arg("instructions"),
          "self_attention(x, norm, eps, q_panels, k_panels, v_panels, bias, heads, q_norm, k_norm, head_eps, bounds,\n"
          "scale, out, threads, instructions)\n"
          "attention of LayerNorm(x) W^T + bias, (T, D) to (T, D), W being those of q, k and v by pack_weight.");
    m.def("attention_backward", &attention_backward, py::arg("grad").noconvert(), py::arg("q").noconvert(),
          py::arg("k").noconvert(), py::arg("v").noconvert(), py::arg("out").noconvert(), py::arg("sums").noconvert(),
          py::arg("dq").noconvert(), py::arg("dk").noconvert(), py::arg("dv").noconvert(), py::arg("bounds_q"),
          py::arg("bounds_k"), py::arg("scale"), py::arg("threads"), py::arg("instructions"),
          "attention_backward(grad, q, k, v, out, sums, dq, dk, dv, bounds_q, bounds_k, scale, threads, instructions)\n"
          "Writes the gradients of q, k and v; out and sums are those of `attention` without norms.");
}
