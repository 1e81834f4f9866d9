// Linear layer on CPUs, float32: arguments of the kernel.
#pragma once

#include "cpu_kernels.h"

// y = x W^T + b. Widths are multiples of 16.
struct Layer {
    const float *panels;  // W by pack_panels
    const float *bias;    // none: 0
    std::size_t in, out;
};

// Rows (by pack_rows) through a layer, then `add` where there is one; or exact GELU, and the results packed for the next
// layer.
struct LayerRows {
    const float *rows;
    std::size_t count;
    Layer layer;
    bool gelu;
    Rows add;
    ResultRows out;
};
