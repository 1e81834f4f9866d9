// Second half of a transformer block on CPUs: output projection, residual, LayerNorm and MLP in bands of rows.
#include "linear.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings/arrays.h"
#include "instructions.h"
#include "threads.h"

namespace py = pybind11;

namespace {

using namespace camae_arrays;

// Rows of a band: few enough that the MLP's hidden values stay in the second-level cache, equally many for each thread
// but enough that weights are not read for a few of them.
std::size_t band_of(std::size_t rows, std::size_t threads) {
    constexpr std::size_t most_rows = 96, fewest_rows = 24, fewest_turns = 2;
    const std::size_t turns = std::max((rows + most_rows * threads - 1) / (most_rows * threads), fewest_turns);
    return rounded_up(std::max((rows + turns * threads - 1) / (turns * threads), fewest_rows), strip_rows);
}

Array pack_weight(const Array &weight, const std::string &instructions) {
    const auto &kernels = kernels_of(instructions);
    if (weight.ndim() != 2) throw std::invalid_argument("weight: (outputs, inputs)");
    const std::size_t out = width(weight, 0), in = width(weight, 1);
    const Rows rows = matrix_rows(weight, out, in, "weight");
    if (out == 0 || out % width_step != 0 || in % width_step != 0) throw std::invalid_argument("weight: widths must be multiples of 16");
    Array panels({(out + panel_columns - 1) / panel_columns, in / kernels.terms, panel_columns});
    Array four_rows(4 * in);
    kernels.pack_panels(rows, out, in, {}, four_rows.mutable_data(), panels.mutable_data());
    return panels;
}

// What follows attention in a block: y = x + attended W^T + b, out = y + mlp(LayerNorm(y or x)).
void block_tail(const Array &x, const Array &attended, const Array &proj, const Maybe &proj_bias, bool parallel,
                const Maybe &norm, float eps, const Array &panels_in, const Maybe &bias_in, const Array &panels_out,
                const Maybe &bias_out, Array out, int threads, const std::string &instructions) {
    if (x.ndim() != 2 || panels_out.ndim() != 3) throw std::invalid_argument("x: (T, D), packed weights (., ., 64)");
    const auto &kernels = kernels_of(instructions);
    const std::size_t count = width(x, 0), D = width(x, 1), hidden = width(panels_out, 1) * kernels.terms;
    const std::size_t unit_D = D / kernels.terms, unit_hidden = hidden / kernels.terms;
    const Rows tokens = matrix_rows(x, count, D, "x"), from = matrix_rows(attended, count, D, "attended");
    const ResultRows result = matrix_result(out, count, D, "out");
    const Layer project = layer_of(proj, proj_bias, D, D, kernels, "proj");
    const Layer first = layer_of(panels_in, bias_in, D, hidden, kernels, "first layer of the MLP");
    const Layer second = layer_of(panels_out, bias_out, hidden, D, kernels, "second layer of the MLP");
    const RowNorm row_norm = norm_of(norm, D, eps);
    const std::size_t cores = threads_for(threads), band = band_of(count, cores);
    py::gil_scoped_release release;
    run_tasks((count + band - 1) / band, cores, band * (unit_D + unit_hidden), [&](std::size_t task, float *packed) {
        const std::size_t t = task * band, n = std::min(band, count - t), padded = rounded_up(n, strip_rows);
        float *const inner = packed + band * unit_D;
        const ResultRows y{result[t], result.stride};
        const Rows residual{y.first, y.stride}, tokens_here{tokens[t], tokens.stride};
        kernels.pack_rows({from[t], from.stride}, n, padded, D, {}, 1, packed);
        kernels.apply_layer({packed, n, project, false, tokens_here, y});
        kernels.pack_rows(parallel ? tokens_here : residual, n, padded, D, row_norm, 1, packed);
        // The rows that fill the last strip go through too: they stand behind the others in `inner`.
        kernels.apply_layer({packed, padded, first, true, {nullptr, 0}, {inner, unit_hidden}});
        kernels.apply_layer({inner, n, second, false, residual, y});
    });
}

}  // namespace

void bind_block(py::module_ &m) {
    m.def(
        "cpu_instructions",
        [](const std::string &precision) {
            std::vector<std::string> names;
            for (const auto *kernels : usable_kernels())
                if ((kernels->terms == 2) == (precision == "bfloat16")) names.push_back(kernels->instructions);
            return names;
        },
        py::arg("precision") = "float32",
        "cpu_instructions(precision) -> instruction sets of this processor that the CPU kernels of float32 or bfloat16\n"
        "have, best first.");
    m.def("has_tiles", [] { return has_tiles(); }, "Whether this processor has tile products of bfloat16 (AMX).");
    m.def("pack_weight", &pack_weight, py::arg("weight").noconvert(), py::arg("instructions"),
          "pack_weight(weight, instructions) -> (outputs / 64 rounded up, inputs, 64) of a weight (outputs, inputs);\n"
          "in bfloat16 (., inputs / 2, 64), pairs of inputs in 32 bits.");
    m.def("block_tail", &block_tail, py::arg("x").noconvert(), py::arg("attended").noconvert(),
          py::arg("proj").noconvert(), py::arg("proj_bias").none(true), py::arg("parallel"), py::arg("norm").none(true),
          py::arg("eps"), py::arg("panels_in").noconvert(), py::arg("bias_in").none(true),
          py::arg("panels_out").noconvert(), py::arg("bias_out").none(true), py::arg("out").noconvert(),
          py::arg("threads"), py::arg("instructions"),
          "block_tail(x, attended, proj, proj_bias, parallel, norm, eps, panels_in, bias_in, panels_out, bias_out, out,\n"
          "threads, instructions)\n"
          "y = x + attended W^T + b; out = y + gelu(LayerNorm(x if parallel else y) W_in^T + b_in) W_out^T + b_out.");
}
