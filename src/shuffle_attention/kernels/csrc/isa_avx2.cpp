// The kernels for x86-64 processors with AVX2, FMA and F16C.
#define SIMD_NAMESPACE avx2
#define SIMD_BYTES 32
#define SIMD_AVX2
#define SIMD_TARGET "avx2,fma,f16c"
#include "isa.h"
