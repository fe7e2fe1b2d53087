// The kernels for x86-64 processors with AVX-512 (F, BW, VL, DQ).
#include "kernels.h"

#ifdef __x86_64__
#include <immintrin.h>

// Last of all what is included from elsewhere, so that no inline function of another file is
// compiled for this instruction set and then called on a processor without it.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif

namespace shuffle_attention {
namespace avx512 {
#define SIMD_BYTES 64
#define SIMD_AVX512
#include "simd.h"
#include "arithmetic.h"
#include "planes.h"
#include "rows.h"
#include "tiles.h"
#include "tail_gates.h"
#include "tail_planes.h"
#include "tail_rows.h"
#include "table.h"
}  // namespace avx512
}  // namespace shuffle_attention

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif

namespace shuffle_attention {
const KernelTable* avx512_kernels() {
#ifdef __x86_64__
  return &avx512::table;
#else
  return nullptr;
#endif
}
}  // namespace shuffle_attention
