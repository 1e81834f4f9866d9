// Fingerprint of arrays: 64 bits that follow from all of their bytes, at the speed of memory.
#include <cstdint>
#include <cstring>
#include <vector>

#include "bindings/arrays.h"
#include "threads.h"

namespace py = pybind11;

namespace {

constexpr std::size_t lanes = 8, chunk_bytes = 1 << 20;

// Odd factor: a step is a bijection of the state for any word and of the word for any state, so that one changed word
// always shows.
std::uint64_t step(std::uint64_t state, std::uint64_t word) { return (state ^ word) * 0x9E3779B97F4A7C15u; }

std::uint64_t fingerprint_of(const char *bytes, std::size_t count) {
    std::uint64_t states[lanes], words[lanes];
    for (std::size_t i = 0; i < lanes; ++i) states[i] = i + 1;
    for (; count >= sizeof words; count -= sizeof words, bytes += sizeof words) {
        std::memcpy(words, bytes, sizeof words);
        // The high bits of a product depend on all bits of its factors, the low ones only on low ones.
        for (std::size_t i = 0; i < lanes; ++i) states[i] = step(states[i] ^ (states[i] >> 32), words[i]);
    }
    std::memset(words, 0, sizeof words);
    if (count > 0) std::memcpy(words, bytes, count);  // of no bytes there is no pointer
    std::uint64_t whole = count;
    for (std::size_t i = 0; i < lanes; ++i) whole = step(step(whole ^ (whole >> 32), states[i]), words[i]);
    return whole;
}

struct Chunk {
    const char *bytes;
    std::size_t count;
};

std::uint64_t fingerprint(const std::vector<camae_arrays::Array> &arrays, int threads) {
    std::vector<Chunk> chunks;
    for (const auto &array : arrays) {
        if (!camae_arrays::contiguous(array)) throw std::invalid_argument("arrays: must be contiguous");
        const std::size_t count = static_cast<std::size_t>(array.nbytes());
        const char *const bytes = reinterpret_cast<const char *>(array.data());
        for (std::size_t i = 0; i < count; i += chunk_bytes) chunks.push_back({bytes + i, std::min(chunk_bytes, count - i)});
    }
    std::vector<std::uint64_t> found(chunks.size());
    py::gil_scoped_release release;
    run_tasks(chunks.size(), threads_for(threads), 1,
              [&](std::size_t i, float *) { found[i] = fingerprint_of(chunks[i].bytes, chunks[i].count); });
    return fingerprint_of(reinterpret_cast<const char *>(found.data()), found.size() * sizeof(std::uint64_t));
}

}  // namespace

void bind_fingerprint(py::module_ &m) {
    m.def("fingerprint", &fingerprint, py::arg("arrays"), py::arg("threads"),
          "fingerprint(arrays, threads) -> 64 bits of all bytes of contiguous float32 arrays, in order.");
}
