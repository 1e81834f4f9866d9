// Run-time detection of the processor's instruction sets.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu_kernels.h"

// Best first.
inline std::vector<const CpuKernels *> usable_kernels() {
    std::vector<const CpuKernels *> found;
#ifdef CAMAE_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kernels_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kernels_avx2);
#endif
    return found;
}

inline const CpuKernels &kernels_of(const std::string &instructions) {
    for (const auto *kernels : usable_kernels())
        if (instructions == kernels->instructions) return *kernels;
    throw std::invalid_argument("no CPU kernel for '" + instructions + "' on this processor");
}
