// The kernels of one instruction set, SIMD_TARGET; each isa_*.cpp includes this and nothing else.
#include "kernels.h"

#if defined(SIMD_TARGET) && defined(__x86_64__)
#include <immintrin.h>
#endif

// Include nothing of others after this point: an inline function compiled here for a larger instruction set could be
// kept by the linker and run on a processor without it.
#if defined(SIMD_TARGET) && defined(__x86_64__)
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

template <class A, Op kOp, bool kNCHW>
constexpr void add_attention(Kernels& kernels) {
  kernels.find_gates = find_gates<A, kOp>;
  kernels.finish_sums = finish_sums<A, kOp, kNCHW>;
  kernels.find_gradient = find_gradient<A, kOp>;
}

template <class T, Op kOp>
constexpr Kernels nchw() {
  using A = Accumulator<T>;
  Kernels kernels = {statistics_nchw<T, kOp>, nullptr, output_nchw<T, kOp>, gradient_sums_nchw<T, kOp>,
                     nullptr, nullptr, gradient_nchw<T, kOp>, Lanes<A>::count};
  if constexpr (attends(kOp)) add_attention<A, kOp, true>(kernels);
  return kernels;
}

template <class T, Op kOp>
constexpr Kernels nhwc() {
  using A = Accumulator<T>;
  Kernels kernels = {statistics_nhwc<T, kOp>, nullptr, output_nhwc<T, kOp>, gradient_sums_nhwc<T, kOp>,
                     nullptr, nullptr, gradient_nhwc<T, kOp>, kTileVectors<kOp> * Lanes<A>::count};
  if constexpr (attends(kOp)) add_attention<A, kOp, false>(kernels);
  return kernels;
}

template <Op kOp>
constexpr OpKernels kernels = {{
    {nchw<float, kOp>(), nchw<double, kOp>(), nchw<BFloat16, kOp>(), nchw<Half, kOp>()},
    {nhwc<float, kOp>(), nhwc<double, kOp>(), nhwc<BFloat16, kOp>(), nhwc<Half, kOp>()},
}};
constexpr KernelTable table = {{kernels<kLayer>, kernels<kTail>, kernels<kPlain>}};

}  // namespace SIMD_NAMESPACE
const KernelTable* SIMD_JOINED(SIMD_NAMESPACE, _kernels)() { return &SIMD_NAMESPACE::table; }
}  // namespace shuffle_attention
#else
namespace shuffle_attention {
const KernelTable* SIMD_JOINED(SIMD_NAMESPACE, _kernels)() { return nullptr; }
}  // namespace shuffle_attention
#endif

#if defined(SIMD_TARGET) && defined(__x86_64__) && defined(__clang__)
#pragma clang attribute pop
#endif
