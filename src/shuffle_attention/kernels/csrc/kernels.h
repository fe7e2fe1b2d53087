// What the code compiled for one instruction set offers, and what it is given.
//
// Nothing here depends on PyTorch or on an instruction set. The equations stand in
// ops/reference.py; gates.h says in which form they are computed.
#pragma once

#include <cstdint>
#include <type_traits>

namespace shuffle_attention {

// Stored as their bits; arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
// The type of statistics, gates and parameters for maps of type T.
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// A map (batch, channels, plane); `plane` is the product of the spatial sizes.
struct Map {
  int64_t batch, channels, plane;
  bool shuffle;
  bool whole_rows;  // of kRows alone: a unit is an image, gone through in the order of memory
};

// The six parameters spread over the channels, so that both branches are one formula:
//   gate = gain * sigmoid(alpha * xhat + slope * mean + beta)
// alpha is 0 in the channel branch, slope is 0 in the spatial branch; `spatial` is 1 there.
template <class A>
struct Gates {
  const A *alpha, *slope, *beta, *spatial;
  A eps;
  // The gain costs nothing: gain / (1 + 2^t) = 1 / (1 / gain + 2^(t - log2 gain)).
  A log_gain, inverse_gain;
};

}  // namespace shuffle_attention

#include "tail.h"

namespace shuffle_attention {

// The work is cut into units that touch disjoint parts of the output, so that no number depends
// on which thread ran what. Pointers are to elements of the kernel's own type.
using Forward = void (*)(const Map&, const void* gates, const void* x, void* y, int64_t begin, int64_t end);

// `sums` has shape (batch, 2, channels) in the accumulator's type, with h = gate (1 - gate) dy x:
// first the sum of h over a plane, then that of h * xhat (spatial branch) or mean * h (channel branch).
using Backward = void (*)(
    const Map&, const void* gates, const void* x, const void* dy, void* dx, void* sums, int64_t begin, int64_t end);

struct Kernels {
  Forward forward;
  Backward backward;
  // Channels of each half of the map that one unit covers.
  int64_t width;

  int64_t units(const Map& map) const {
    const int64_t half = map.channels / 2;
    return map.whole_rows ? map.batch : map.batch * ((half + width - 1) / width);
  }
};

enum Layout { kPlanes, kRows };  // (B, C, plane) and (B, plane, C) in memory
enum Type { kFloat, kDouble, kBFloat16, kHalf };

struct KernelTable {
  Kernels at[2][4];  // [Layout][Type]
  TailKernels tail[2][4];
};

// One per instruction set, in isa_*.cpp; null where the compiler has no such set.
const KernelTable* generic_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();

}  // namespace shuffle_attention
