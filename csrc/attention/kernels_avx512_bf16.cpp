// CPU kernels in AVX-512 whose products are of bfloat16. Compiled with its flags; called only where the processor has them.
#include "simd_avx512_bf16.h"

#include "attention_kernel.h"
#include "linear_kernel.h"

const CpuKernels kernels_avx512_bf16 = {"avx512_bf16",
                                        Avx512Bf16::terms,
                                        pack_rows<Avx512Bf16>,
                                        pack_panels<Avx512Bf16>,
                                        pack_values<Avx512Bf16>,
                                        attend<Avx512Bf16>,
                                        nullptr,
                                        apply_layer<Avx512Bf16>};
