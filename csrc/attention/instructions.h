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
#ifdef CAMAE_AVX512_BF16
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16")) found.push_back(&kernels_avx512_bf16);
#endif
    if (__builtin_cpu_supports("avx512f")) found.push_back(&kernels_avx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&kernels_avx2);
#endif
    return found;
}

// AMX with bfloat16, which the kernels here do not use.
inline bool has_tiles() {
#ifdef CAMAE_X86
    __builtin_cpu_init();
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
#else
    return false;
#endif
}

inline const CpuKernels &kernels_of(const std::string &instructions) {
    for (const auto *kernels : usable_kernels())
        if (instructions == kernels->instructions) return *kernels;
    throw std::invalid_argument("no CPU kernel for '" + instructions + "' on this processor");
}
