// The interface of the code that is compiled for one instruction set.
//
// Nothing here depends on PyTorch or on an instruction set. The equations stand in ../reference.py and
// ../block_reference.py; formulas.h has the form in which they are computed.
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

// ---- The end of a residual block. A step works on a span of a map, steps on disjoint spans touch disjoint
// numbers, and sums over samples are taken outside. ----

// `count` channels from `first` on in each half of the channels, of one image.
struct Span {
  int64_t image, first, count;
};

// Coefficients that all planes of a channel share.
template <class A>
struct Channels {
  const A *scale, *bias;            // a, and BatchNorm's bias
  const A *mean, *rest;             // M is their sum
  const A *by_bias, *by_weight;     // a d bias / N and a^2 d weight / (N weight), or 0; for find_gradient alone
  Gates<A> gates;
};

// Rows of the per-plane arrays, each of shape (batch, rows, channels) in the accumulator's type; those
// of coefficients and raw sums are of one image alone, that of the span.
enum Statistic { kPivot, kRest, kVariance, kStatistics };  // the mean is pivot + rest
enum Coefficient {
  kShift,       // z = scale * (u - pivot) + shift
  kSlope,       // S
  kExponent,    // the gate is gate_of(kToExponent * S * (u - pivot) + exponent)
  kGate,        // that of the channel branch, a number for the plane
  kByMean,      // du = a q + S h + by_mean + by_distance * (u - pivot)
  kByDistance,
  kCoefficients
};
enum RawSum { kQ, kQd, kH, kHd, kRawSums };  // with u - pivot for d
// As the layer's kernels leave them: the sum of h, and of h * zhat (spatial branch) or h * mean (channel branch).
enum GateSum { kSumH, kWeighted, kGateSums };
enum NormSum { kSumDz, kSumDzDistance, kNormSums };  // of dz, and of dz * (u - M)

// Pointers to maps are to elements of the kernel's own type, the others to the accumulator's.
struct Tail {
  Map map;
  bool relu;
  const void *u, *shortcut;          // shortcut may be null
  void* out;
  const void *grad, *activated;      // activated is null without ReLU
  void *du, *dshortcut;              // dshortcut is null if it is nobody's, or grad itself
  void *statistics, *coefficients, *raw_sums, *gate_sums, *norm_sums;
  const void* channels;              // Channels<A>
};

using TailStep = void (*)(const Tail&, const Span&);

struct TailKernels {
  TailStep statistics;     // u to statistics
  TailStep find_gates;     // statistics to coefficients
  TailStep output;         // u, shortcut to out
  TailStep gradient_sums;  // u, grad, activated to raw_sums and dshortcut; du keeps what it can of itself
  TailStep finish_sums;    // raw_sums to gate_sums and norm_sums
  TailStep find_gradient;  // gate_sums to the last coefficients
  TailStep gradient;       // to du
  int64_t width;           // spans begin at multiples of this
};

// ---- The layer ----

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
