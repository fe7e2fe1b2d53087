// What the code compiled for one instruction set offers for the end of a residual block; see kernels.h.
//
// The algebra and its letters stand in ops/block_reference.py. A step works on a span of a map, steps
// on disjoint spans touch disjoint numbers, and what is summed over samples is summed outside.
#pragma once

namespace shuffle_attention {

// `count` channels from `first` on in each half of the channels, of one image.
struct Span {
  int64_t image, first, count;
};

// What the planes of a channel have in common.
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

}  // namespace shuffle_attention
