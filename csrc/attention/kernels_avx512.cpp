// CPU kernels in AVX-512. Compiled with its flags; called only where the processor has them.
#include "simd_avx512.h"

#include "attention_gradient.h"
#include "attention_kernel.h"
#include "linear_kernel.h"

const CpuKernels kernels_avx512 = {"avx512",         Avx512::terms,  pack_rows<Avx512>,       pack_panels<Avx512>,
                               pack_values<Avx512>, attend<Avx512>, attend_backward<Avx512>, apply_layer<Avx512>};
