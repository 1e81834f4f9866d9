// Conversion of NumPy arrays to the CPU kernels' arguments, with checks: matrices, norms, packed layers.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "attention/linear.h"

namespace camae_arrays {

namespace py = pybind11;
using Array = py::array_t<float>;
using Maybe = std::optional<Array>;

inline std::size_t width(const Array &x, int axis) { return static_cast<std::size_t>(x.shape(axis)); }

inline bool contiguous(const Array &x) { return (x.flags() & py::array::c_style) != 0; }

// A matrix (rows, columns), every row contiguous, columns a multiple of 16.
inline Rows matrix_rows(const Array &x, std::size_t rows, std::size_t columns, const char *name) {
    if (x.ndim() != 2 || width(x, 0) != rows || width(x, 1) != columns || columns % width_step != 0 || columns == 0)
        throw std::invalid_argument(std::string(name) + ": (rows, columns) as the layer has them, widths multiples of 16");
    if (x.size() > 0 && (x.strides(1) != sizeof(float) || x.strides(0) % sizeof(float) != 0))
        throw std::invalid_argument(std::string(name) + ": rows must be contiguous");
    return {x.data(), static_cast<std::size_t>(x.strides(0)) / sizeof(float)};
}

inline ResultRows matrix_result(Array &x, std::size_t rows, std::size_t columns, const char *name) {
    const Rows found = matrix_rows(x, rows, columns, name);
    return {x.mutable_data(), found.stride};
}

inline RowNorm norm_of(const Maybe &weight_bias, std::size_t columns, float eps) {
    if (!weight_bias) return {};
    if (weight_bias->ndim() != 2 || width(*weight_bias, 0) != 2 || width(*weight_bias, 1) != columns ||
        !contiguous(*weight_bias))
        throw std::invalid_argument("a norm is (2, d): weight and bias");
    return {weight_bias->data(), weight_bias->data() + columns, eps};
}

// A layer of weights by pack_weight for the same kernels, (outputs / 64 rounded up, inputs / terms, 64).
inline Layer layer_of(const Array &panels, const Maybe &bias, std::size_t in, std::size_t out,
                      const CpuKernels &kernels, const char *name) {
    const std::size_t count = (out + panel_columns - 1) / panel_columns;
    if (panels.ndim() != 3 || width(panels, 0) != count || width(panels, 1) != in / kernels.terms || width(panels, 2) != panel_columns ||
        !contiguous(panels))
        throw std::invalid_argument(std::string(name) + ": a weight packed for these widths");
    if (bias && (bias->ndim() != 1 || width(*bias, 0) != out || !contiguous(*bias)))
        throw std::invalid_argument(std::string(name) + ": a bias as wide as the layer");
    return {panels.data(), bias ? bias->data() : nullptr, in, out};
}

}  // namespace camae_arrays
