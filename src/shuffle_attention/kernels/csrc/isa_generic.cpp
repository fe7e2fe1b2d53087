// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#define SIMD_NAMESPACE generic
#define SIMD_BYTES 16
#include "isa.h"
