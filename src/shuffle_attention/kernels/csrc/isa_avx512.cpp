// The kernels for x86-64 processors with AVX-512 (F, BW, VL, DQ).
#define SIMD_NAMESPACE avx512
#define SIMD_BYTES 64
#define SIMD_AVX512
#define SIMD_TARGET "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"
#include "isa.h"
