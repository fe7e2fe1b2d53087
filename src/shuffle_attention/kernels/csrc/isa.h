// The kernels of one instruction set, SIMD_TARGET; each isa_*.cpp includes this and nothing else.
#include "kernels.h"

#if defined(SIMD_TARGET) && defined(__x86_64__)
#include <immintrin.h>
#endif

// Include nothing of others after this point: an inline function compiled here for a larger instruction set could be
// kept by the linker and run on a processor without it.
#ifdef SIMD_TARGET
#define SIMD_PRAGMA_OF(text) _Pragma(#text)
#define SIMD_PRAGMA(text) SIMD_PRAGMA_OF(text)
#ifdef __clang__
SIMD_PRAGMA(clang attribute push(__attribute__((target(SIMD_TARGET))), apply_to = function))
#else
SIMD_PRAGMA(GCC target(SIMD_TARGET))
#endif
#endif

#define SIMD_JOINED_OF(a, b) a##b
#define SIMD_JOINED(a, b) SIMD_JOINED_OF(a, b)

#if !defined(SIMD_TARGET) || defined(__x86_64__)
#include "nchw.h"
#include "nhwc.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

template <class T, bool kTail>
constexpr Kernels nchw() {
  using A = Accumulator<T>;
  return {statistics_nchw<T, kTail>, find_gates<A, kTail>, output_nchw<T, kTail>, gradient_sums_nchw<T, kTail>,
          finish_sums<A, kTail, true>, find_gradient<A, kTail>, gradient_nchw<T, kTail>,
          Lanes<A>::count};
}

template <class T, bool kTail>
constexpr Kernels nhwc() {
  using A = Accumulator<T>;
  return {statistics_nhwc<T, kTail>, find_gates<A, kTail>, output_nhwc<T, kTail>, gradient_sums_nhwc<T, kTail>,
          finish_sums<A, kTail, false>, find_gradient<A, kTail>, gradient_nhwc<T, kTail>,
          kTileVectors<kTail> * Lanes<A>::count};
}

template <bool kTail>
constexpr OpKernels kernels = {{
    {nchw<float, kTail>(), nchw<double, kTail>(), nchw<BFloat16, kTail>(), nchw<Half, kTail>()},
    {nhwc<float, kTail>(), nhwc<double, kTail>(), nhwc<BFloat16, kTail>(), nhwc<Half, kTail>()},
}};
constexpr KernelTable table = {kernels<false>, kernels<true>};

}  // namespace SIMD_NAMESPACE
const KernelTable* SIMD_JOINED(SIMD_NAMESPACE, _kernels)() { return &SIMD_NAMESPACE::table; }
}  // namespace shuffle_attention
#else
namespace shuffle_attention {
const KernelTable* SIMD_JOINED(SIMD_NAMESPACE, _kernels)() { return nullptr; }
}  // namespace shuffle_attention
#endif

#if defined(SIMD_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif
