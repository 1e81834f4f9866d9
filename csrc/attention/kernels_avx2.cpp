// CPU kernels in AVX2 with FMA. Compiled with its flags; called only where the processor has them.
#include "simd_avx2.h"

#include "attention_gradient.h"
#include "attention_kernel.h"
#include "linear_kernel.h"

const CpuKernels kernels_avx2 = {"avx2",         Avx2::terms,  pack_rows<Avx2>,       pack_panels<Avx2>,
                               pack_values<Avx2>, attend<Avx2>, attend_backward<Avx2>, apply_layer<Avx2>};
