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
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;

std::size_t attention_scratch(std::size_t queries, std::size_t keys, std::size_t dim) {
    // Rows and keys rounded up to the kernel's steps (6 and 64), six rows of 512 scores, and two floats for every row.
    return (keys + 64) * dim + keys * dim + (queries + 6) * (2 * dim + 2) + 6 * 512;
}

namespace {

using Array = py::array_t<float>;
using Bounds = py::array_t<std::int64_t, py::array::c_style>;

struct InstructionSet {
    const char *name;
    AttentionKernel kernel;
};

std::vector<InstructionSet> instruction_sets() {
    std::vector<InstructionSet> found;
#ifdef CAMAE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found.push_back({"avx512", attention_avx512});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"avx2", attention_avx2});
#endif
    return found;
}

AttentionKernel kernel_of(const std::string &name) {
    for (const auto &set : instruction_sets())
        if (name == set.name) return set.kernel;
    throw std::invalid_argument("no attention kernel for '" + name + "' on this processor");
}

// (T, H, d) with the head dim contiguous.
void check(const Array &x, const char *name, const Array &like) {
    if (x.ndim() != 3 || x.shape(1) != like.shape(1) || x.shape(2) != like.shape(2) || x.shape(2) % 16 != 0)
        throw std::invalid_argument(std::string(name) + ": (T, H, d) of equal H and d, d a multiple of 16");
    if (x.shape(0) > 0 && x.strides(2) != sizeof(float))
        throw std::invalid_argument(std::string(name) + ": the head dim must be contiguous");
}

void check_bounds(const Bounds &bounds, py::ssize_t rows, const char *name) {
    const auto *at = bounds.data();
    const auto n = bounds.size();
    if (n < 1 || at[0] != 0 || at[n - 1] != rows || !std::is_sorted(at, at + n))
        throw std::invalid_argument(std::string(name) + ": must rise from 0 to the number of rows");
}

struct Matrix {
    const float *first;
    std::size_t row, head;

    explicit Matrix(const Array &x)
        : first(x.data()), row(x.strides(0) / sizeof(float)), head(x.strides(1) / sizeof(float)) {}
    const float *at(std::size_t t, std::size_t h) const { return first + t * row + h * head; }
};

HeadNorm norm_of(const std::optional<Array> &weight_bias, std::size_t dim, float eps) {
    if (!weight_bias) return {};
    if (weight_bias->ndim() != 2 || weight_bias->shape(0) != 2 || weight_bias->shape(1) != static_cast<py::ssize_t>(dim) ||
        !(weight_bias->flags() & py::array::c_style))
        throw std::invalid_argument("a norm is (2, d): weight and bias");
    return {weight_bias->data(), weight_bias->data() + dim, eps};
}

// Queries of a head go to several threads when there are fewer heads than threads could share evenly.
std::size_t queries_at_once(std::size_t longest, std::size_t heads, std::size_t threads) {
    const std::size_t parts = (4 * threads + heads - 1) / std::max<std::size_t>(heads, 1);
    return std::min<std::size_t>(std::max<std::size_t>(longest / std::max<std::size_t>(parts, 1) + 1, 384), 4096);
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

// Kept by each worker for its next call: fresh pages cost 5 % of the whole.
float *kept_scratch(std::size_t floats) {
    thread_local std::unique_ptr<float[]> memory;
    thread_local std::size_t size = 0;
    if (size < floats) {
        memory.reset();
        memory.reset(new (std::nothrow) float[floats]);
        size = memory ? floats : 0;
    }
    return memory.get();
}

void attention(const Array &q, const Array &k, const Array &v, Array out_array, const Bounds &bounds_q,
               const Bounds &bounds_k, float scale, const std::optional<Array> &q_norm,
               const std::optional<Array> &k_norm, float eps, int threads, const std::string &instructions) {
    check(q, "q", q), check(k, "k", q), check(v, "v", k);
    check_bounds(bounds_q, q.shape(0), "bounds_q"), check_bounds(bounds_k, k.shape(0), "bounds_k");
    if (v.shape(0) != k.shape(0) || bounds_q.size() != bounds_k.size())
        throw std::invalid_argument("k and v need equal rows, queries and keys equally many sequences");
    const auto kernel = kernel_of(instructions);
    const std::size_t heads = q.shape(1), dim = q.shape(2), sequences = bounds_q.size() - 1;
    const HeadNorm norms[] = {norm_of(q_norm, dim, eps), norm_of(k_norm, dim, eps)};
    check(out_array, "out", q);
    if (out_array.shape(0) != q.shape(0) || !(out_array.flags() & py::array::c_style))
        throw std::invalid_argument("out: contiguous, of the shape of q");
    const Matrix from_q(q), from_k(k), from_v(v);
    float *out = out_array.mutable_data();
    const std::int64_t *starts_q = bounds_q.data(), *starts_k = bounds_k.data();
    {
        py::gil_scoped_release release;
        const std::size_t wanted = threads > 0 ? threads : std::max(1u, std::thread::hardware_concurrency());
        std::size_t longest_q = 0, longest_k = 0;
        for (std::size_t b = 0; b < sequences; ++b) {
            longest_q = std::max<std::size_t>(longest_q, starts_q[b + 1] - starts_q[b]);
            longest_k = std::max<std::size_t>(longest_k, starts_k[b + 1] - starts_k[b]);
        }
        const std::size_t step = queries_at_once(longest_q, heads * sequences, wanted);
        const std::size_t parts = (longest_q + step - 1) / step, tasks = sequences * heads * parts;
        const std::size_t scratch = attention_scratch(std::min(step, longest_q), longest_k, dim);
        const std::size_t workers = std::min(wanted, tasks);
        std::atomic<std::size_t> next{0};
        std::atomic<bool> no_memory{false};
        auto work = [&] {
            float *own = kept_scratch(scratch);
            if (!own) no_memory = true;  // nothing may be thrown on a worker
            if (!own) return;
            for (std::size_t task; (task = next.fetch_add(1)) < tasks;) {
                const std::size_t b = task / (heads * parts), h = task / parts % heads, part = task % parts;
                const std::size_t begin = starts_q[b] + part * step, end = starts_q[b + 1];
                const std::size_t first_key = starts_k[b], keys = starts_k[b + 1] - first_key;
                if (begin >= end) continue;
                const std::size_t queries = std::min(step, end - begin);
                float *to = out + (begin * heads + h) * dim;
                if (keys == 0) {
                    for (std::size_t i = 0; i < queries; ++i) std::memset(to + i * heads * dim, 0, dim * sizeof(float));
                    continue;
                }
                kernel({from_q.at(begin, h), from_k.at(first_key, h), from_v.at(first_key, h), to, from_q.row,
                        from_k.row, from_v.row, heads * dim, queries, keys, dim, scale, norms[0], norms[1]},
                       own);
            }
        };
        if (workers) on_threads(workers, work);
        if (no_memory) throw std::bad_alloc();
    }
}

}  // namespace

void bind_attention(py::module_ &m) {
    m.def(
        "attention_instructions",
        [] {
            std::vector<std::string> names;
            for (const auto &set : instruction_sets()) names.push_back(set.name);
            return names;
        },
        "attention_instructions() -> instruction sets of this processor that the attention kernel has, best first.");
    m.def("attention", &attention, py::arg("q").noconvert(), py::arg("k").noconvert(), py::arg("v").noconvert(),
          py::arg("out").noconvert(), py::arg("bounds_q"), py::arg("bounds_k"), py::arg("scale"), py::arg("q_norm").none(true),
          py::arg("k_norm").none(true), py::arg("eps"), py::arg("threads"), py::arg("instructions"),
          "attention(q, k, v, out, bounds_q, bounds_k, scale, q_norm, k_norm, eps, threads, instructions)\n"
          "(T, H, d) float32. bounds: where sequences begin, and the end; norms: (2, d) weight and bias, or None.");
}
