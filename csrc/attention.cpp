// Attention over packed sequences on a CPU: the instruction set is chosen here, heads go out to threads.
#include "attention.h"

#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

// Each row count rounded up to the kernels' steps (6 and 64), and two floats for every query.
std::size_t attention_scratch(std::size_t queries, std::size_t dim) {
    return (queries + 6) * (dim + 2) + 6 * (512 + 64);
}

std::size_t attention_gradient_scratch(std::size_t queries, std::size_t keys, std::size_t dim) {
    return 2 * (keys + 64) * dim + 3 * (keys + 6) * dim + (queries + 6) * (3 * dim + 2) + 2 * 96 * 384;
}

namespace {

using Array = py::array_t<float>;
using Bounds = py::array_t<std::int64_t, py::array::c_style>;

std::vector<const AttentionKernels *> usable_kernels() {
    std::vector<const AttentionKernels *> found;
#ifdef CAMAE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found.push_back(&attention_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&attention_avx2);
#endif
    return found;
}

const AttentionKernels &kernels_of(const std::string &instructions) {
    for (const auto *kernels : usable_kernels())
        if (instructions == kernels->instructions) return *kernels;
    throw std::invalid_argument("no attention kernel for '" + instructions + "' on this processor");
}

// (T, H, d) with the head dim contiguous.
void check(const Array &x, const char *name, const Array &like) {
    if (x.ndim() != 3 || x.shape(1) != like.shape(1) || x.shape(2) != like.shape(2) || x.shape(2) % 16 != 0)
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

HeadNorm norm_of(const std::optional<Array> &weight_bias, std::size_t dim, float eps) {
    if (!weight_bias) return {};
    if (weight_bias->ndim() != 2 || weight_bias->shape(0) != 2 || weight_bias->shape(1) != static_cast<py::ssize_t>(dim) ||
        !(weight_bias->flags() & py::array::c_style))
        throw std::invalid_argument("a norm is (2, d): weight and bias");
    return {weight_bias->data(), weight_bias->data() + dim, eps};
}

// Calls `work` on `count` threads and waits for all.
//
// On the workers of the OpenMP runtime that torch brought, where there is one: they wait by spinning after each of
// torch's operations, and threads of our own beside them would get half a core (measured: 94 against 150 GFLOP/s).
template <class Work>
void on_threads(std::size_t count, Work &work) {
    using Parallel = void (*)(void (*)(void *), void *, unsigned, unsigned);
    if (const auto parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"))) {
        parallel([](void *w) { (*static_cast<Work *>(w))(); }, &work, count, 0);
        return;
    }
    std::vector<std::thread> pool;
    for (std::size_t i = 1; i < count; ++i) pool.emplace_back([&work] { work(); });
    work();
    for (auto &thread : pool) thread.join();
}

// Memory kept for the next call: fresh pages cost 5 % of the whole.
class Kept {
  public:
    // Null where there is not so much.
    float *floats(std::size_t count) {
        if (size < count) {
            memory.reset();
            memory.reset(new (std::nothrow) float[count]);
            size = memory ? count : 0;
        }
        return memory.get();
    }

  private:
    std::unique_ptr<float[]> memory;
    std::size_t size = 0;
};

thread_local Kept kept_scratch, kept_packed;

std::size_t threads_for(int threads) {
    return threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
}

// `task(index, scratch)` for every index below `tasks`, on up to `threads` threads.
template <class Task>
void run_tasks(std::size_t tasks, std::size_t threads, std::size_t scratch, const Task &task) {
    std::atomic<std::size_t> next{0};
    std::atomic<bool> no_memory{false};
    auto work = [&] {
        float *own = kept_scratch.floats(scratch);
        if (!own) no_memory = true;  // nothing may be thrown on a worker
        for (std::size_t index; own && (index = next.fetch_add(1)) < tasks;) task(index, own);
    };
    if (tasks) on_threads(std::min(threads, tasks), work);
    if (no_memory) throw std::bad_alloc();
}

constexpr std::size_t band_rows = 192;          // rows packed by one task: a multiple of both of the kernels' steps
constexpr std::size_t packed_floats = 4 << 20;  // what a round packs where that is enough: half of a last-level cache

// The heads [first_head, last_head) of the sequences [first, last): what is packed and computed together.
struct Round {
    std::size_t first, last, first_head, last_head;
};

// The forward pass over a packed batch. In every round rows are packed first, band after band so that memory is read in
// order (packed head after head it was 10 % of the whole), then come the heads, some queries at a time.
class ForwardPass {
  public:
    ForwardPass(const Array &q, const Array &k, const Array &v, float *out, float *sums, const Sequences &sequences,
                const HeadNorm (&norms)[2], float scale, const AttentionKernels &kernels, std::size_t threads)
        : q(q), k(k), v(v), out(out), sums(sums), sequences(sequences), q_norm(norms[0]), k_norm(norms[1]),
          scale(scale), kernels(kernels), threads(threads), heads(q.shape(1)), dim(q.shape(2)) {}

    void run() const {
        for (std::size_t b = 0; b < sequences.count;) {
            const std::size_t one = std::max<std::size_t>(floats_of_head(b), 1);
            if (one * heads > packed_floats) {
                const std::size_t step = std::max<std::size_t>(packed_floats / one, 1);
                for (std::size_t h = 0; h < heads; h += step) run({b, b + 1, h, std::min(h + step, heads)});
                ++b;
                continue;
            }
            std::size_t last = b, size = 0;
            while (last < sequences.count && (size += floats_of_head(last) * heads) <= packed_floats) ++last;
            run({b, last, 0, heads});
            b = last;
        }
    }

  private:
    const Array &q, &k, &v;
    float *out, *sums;
    const Sequences &sequences;
    const HeadNorm &q_norm, &k_norm;
    float scale;
    const AttentionKernels &kernels;
    std::size_t threads, heads, dim;

    std::size_t queries_of(std::size_t b) const { return sequences.q[b + 1] - sequences.q[b]; }
    std::size_t keys_of(std::size_t b) const { return sequences.k[b + 1] - sequences.k[b]; }

    // A packed head: its key panels, its values, its queries.
    std::size_t panel_floats(std::size_t b) const { return rounded_up(keys_of(b), attention_panel_keys) * dim; }
    std::size_t value_floats(std::size_t b) const { return rounded_up(keys_of(b), attention_query_rows) * dim; }
    std::size_t query_floats(std::size_t b) const { return rounded_up(queries_of(b), attention_query_rows) * dim; }
    std::size_t floats_of_head(std::size_t b) const { return panel_floats(b) + value_floats(b) + query_floats(b); }

    void run(const Round &round) const {
        const std::size_t count = round.last - round.first, round_heads = round.last_head - round.first_head;
        std::vector<std::size_t> starts{0};
        std::size_t longest = 0, longest_q = 0;
        for (std::size_t b = round.first; b < round.last; ++b) {
            starts.push_back(starts.back() + floats_of_head(b) * round_heads);
            longest_q = std::max(longest_q, queries_of(b));
            longest = std::max({longest, longest_q, keys_of(b)});
        }
        float *const packed = kept_packed.floats(starts.back());
        if (!packed) throw std::bad_alloc();
        const auto head_at = [&](std::size_t b, std::size_t h) {
            return packed + starts[b - round.first] + (h - round.first_head) * floats_of_head(b);
        };
        const std::size_t bands = (longest + band_rows - 1) / band_rows;
        run_tasks(count * bands, threads, dim, [&](std::size_t task, float *row) {
            const std::size_t b = round.first + task / bands;
            for (std::size_t h = round.first_head; h < round.last_head; ++h)
                pack(b, h, task % bands * band_rows, row, head_at(b, h));
        });
        const std::size_t step = queries_at_once(longest_q, round_heads * count);
        const std::size_t parts = (longest_q + step - 1) / step;
        const std::size_t scratch = attention_scratch(std::min(step, longest_q), dim);
        run_tasks(count * round_heads * parts, threads, scratch, [&](std::size_t task, float *memory) {
            const std::size_t b = round.first + task / (round_heads * parts);
            const std::size_t h = round.first_head + task / parts % round_heads;
            attend(b, h, task % parts * step, step, head_at(b, h), memory);
        });
    }

    void pack(std::size_t b, std::size_t h, std::size_t begin, float *row, float *to) const {
        if (const std::size_t keys = keys_of(b), first = sequences.k[b] + begin; begin < keys) {
            const std::size_t count = std::min(band_rows, keys - begin);
            kernels.pack_panels(rows_of(k, first, h), count, dim, k_norm, row, to + begin * dim);
            kernels.pack_rows(rows_of(v, first, h), count, dim, {}, 1, to + panel_floats(b) + begin * dim);
        }
        if (const std::size_t queries = queries_of(b), first = sequences.q[b] + begin; begin < queries)
            kernels.pack_rows(rows_of(q, first, h), std::min(band_rows, queries - begin), dim, q_norm, scale * log2_e,
                              to + panel_floats(b) + value_floats(b) + begin * dim);
    }

    // Queries of a head go to several threads when there are fewer heads than threads could share evenly.
    std::size_t queries_at_once(std::size_t longest, std::size_t tasks) const {
        const std::size_t parts = (4 * threads + tasks - 1) / std::max<std::size_t>(tasks, 1);
        const std::size_t even = longest / std::max<std::size_t>(parts, 1) + 1;
        return rounded_up(std::min<std::size_t>(std::max<std::size_t>(even, 384), 4096), attention_query_rows);
    }

    void attend(std::size_t b, std::size_t h, std::size_t begin, std::size_t most, const float *packed,
                float *memory) const {
        const std::size_t keys = keys_of(b), t = sequences.q[b] + begin;
        if (begin >= queries_of(b)) return;
        const std::size_t count = std::min(most, queries_of(b) - begin);
        const ResultRows result = results_of(q, out, t, h);
        float *const row_sums = sums + h * q.shape(0) + t;
        if (keys == 0) {
            clear(result, count, dim);
            std::fill(row_sums, row_sums + count, -std::numeric_limits<float>::infinity());
            return;
        }
        const float *const values = packed + panel_floats(b), *const queries = values + value_floats(b);
        kernels.forward({queries + begin * dim, packed, values, result, row_sums, count, keys, dim}, memory);
    }
};

void attention(const Array &q, const Array &k, const Array &v, Array out, Array sums, const Bounds &bounds_q,
               const Bounds &bounds_k, float scale, const std::optional<Array> &q_norm,
               const std::optional<Array> &k_norm, float eps, int threads, const std::string &instructions) {
    check_inputs(q, k, v, bounds_q, bounds_k);
    check_result(out, "out", q), check_sums(sums, q);
    const Sequences sequences(bounds_q, bounds_k);
    const std::size_t dim = q.shape(2);
    const HeadNorm norms[] = {norm_of(q_norm, dim, eps), norm_of(k_norm, dim, eps)};
    const ForwardPass pass(q, k, v, out.mutable_data(), sums.mutable_data(), sequences, norms, scale,
                           kernels_of(instructions), threads_for(threads));
    py::gil_scoped_release release;
    pass.run();
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
        kernels.backward({rows_of(q, first, h), rows_of(k, first_key, h), rows_of(v, first_key, h),
                          rows_of(out, first, h), rows_of(grad, first, h), sums.data() + h * T + first, results[0],
                          results[1], results[2], queries, keys, dim, scale},
                         memory);
    });
}

}  // namespace

void bind_attention(py::module_ &m) {
    m.def(
        "attention_instructions",
        [] {
            std::vector<std::string> names;
            for (const auto *kernels : usable_kernels()) names.push_back(kernels->instructions);
            return names;
        },
        "attention_instructions() -> instruction sets of this processor that the attention kernel has, best first.");
    m.def("attention", &attention, py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
          py::arg("out").noconvert(), py::arg("sums").noconvert(), py::arg("bounds_q"), py::arg("bounds_k"),
          py::arg("scale"), py::arg("q_norm").none(true), py::arg("k_norm").none(true), py::arg("eps"),
          py::arg("threads"), py::arg("instructions"),
          "attention(q, k, v, out, sums, bounds_q, bounds_k, scale, q_norm, k_norm, eps, threads, instructions)\n"
          "(T, H, d) float32; sums (H, T): log2 of the softmax denominators. bounds: where sequences begin, and the\n"
          "end; norms: (2, d) weight and bias, or None.");
    m.def("attention_backward", &attention_backward, py::arg("grad").noconvert(), py::arg("q").noconvert(),
          py::arg("k").noconvert(), py::arg("v").noconvert(), py::arg("out").noconvert(), py::arg("sums").noconvert(),
          py::arg("dq").noconvert(), py::arg("dk").noconvert(), py::arg("dv").noconvert(), py::arg("bounds_q"),
          py::arg("bounds_k"), py::arg("scale"), py::arg("threads"), py::arg("instructions"),
          "attention_backward(grad, q, k, v, out, sums, dq, dk, dv, bounds_q, bounds_k, scale, threads, instructions)\n"
          "Writes the gradients of q, k and v; out and sums are those of `attention` without norms.");
}
