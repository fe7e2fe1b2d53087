// The interface of the code that is compiled for one instruction set.
//
// Nothing here depends on PyTorch or on an instruction set. The equations are in ../reference.py and
// ../block_reference.py; formulas.h has the form in which they are computed.
//
// One set of passes serves all: the layer is the block tail with z = u, without shortcut and ReLU.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace shuffle_attention {

// Stored as their bits; arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// The type of statistics, gates and parameters for maps of type T.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

// What a call computes: the layer, the block tail, or the block tail without attention.
enum Op { kLayer, kTail, kPlain };
constexpr bool normalises(Op op) { return op != kLayer; }
constexpr bool attends(Op op) { return op != kPlain; }
// Attention works on both halves of the channels together: the shuffle makes neighbours of them.
constexpr int parts_of(Op op) { return attends(op) ? 2 : 1; }

// A map (batch, channels, plane); `plane` is the product of the spatial sizes.
struct Map {
  int64_t batch, channels, plane;
  bool shuffle;
};

// The six parameters spread over the channels, so that both branches are one formula:
//   gate = gain * sigmoid(alpha * zhat + cweight * mean + beta)
// alpha is 0 in the channel branch, cweight is 0 in the spatial branch; `spatial` is 1 there.
template <class A>
struct Gates {
  const A *alpha, *cweight, *beta, *spatial;
  A eps;
  // The gain costs nothing: gain / (1 + 2^t) = 1 / (1 / gain + 2^(t - log2 gain)).
  A log_gain, inverse_gain;
  int64_t n;  // channels of a branch in a group
};

// Values per channel. BatchNorm is z = scale * (u - centre) + shift; its pointers are null for the layer.
template <class A>
struct Channels {
  Gates<A> gates;
  const A *centre, *scale, *shift;  // centre is the mean, rounded; shift has the rest of it
  const A *by_bias, *by_weight;     // du through BatchNorm's statistics is -(by_bias + by_weight * (u - centre))
};

// Rows of arrays of shape (rows, channels) for one image, in the accumulator's type.
enum Statistic { kPivot, kRest, kVariance, kStatistics };  // the mean is pivot + rest
enum Coefficient {
  kRho,         // 0 where nothing passes through the variance: channel branch, one pixel, overflow
  kSlope,       // S
  kExponent,    // the gate is gate_of(kToExponent * S * d + exponent) with d = u - pivot
  kGate,        // of the channel branch, one per plane
  kByMean,      // du = a q + S h + by_mean + by_distance * d
  kByDistance,
  kCoefficients
};
enum RawSum { kH, kHd, kQ, kQd, kRawSums };  // sums over the plane: without BatchNorm, or attention, of two of them
enum GateSum { kSumH, kWeighted, kGateSums };  // of h, and of h * zhat (spatial branch) or h * mean (channel branch)
enum NormSum { kSumDz, kSumDzDistance, kNormSums };  // of dz, and of dz * (u - centre)

// What a step reads and writes. Pointers to maps are to elements of the kernel's own type.
struct Operands {
  Map map;
  bool relu;    // in the backward pass: whether its mask is to be rebuilt from u
  bool cached;  // whether the step before has left the span of u and du in cache
  const void *u, *shortcut;  // shortcut may be null
  void* out;
  const void *grad, *activated;  // activated is the output, null without ReLU
  void *du, *dshortcut;          // dshortcut is null if it is not needed, or grad itself
  const void* channels;          // Channels<A>
  void *statistics, *coefficients, *raw_sums, *gate_sums, *norm_sums;  // of the span's image
  void* part;  // in NCHW: memory for what du keeps of itself where its type would round that; may be null
};

// `count` channels from `first` on in each part of the channels of one image.
struct Span {
  int64_t image, first, count;
};

// A step works on one span. Steps on disjoint spans write disjoint memory, so that no result depends on which thread
// ran what; sums over samples are taken outside.
using Step = void (*)(const Operands&, const Span&);

// Without attention there are statistics, output, gradient_sums (u, grad, activated to norm_sums and dshortcut) and
// gradient; the others are null.
struct Kernels {
  Step statistics;     // u to statistics
  Step find_gates;     // statistics to coefficients
  Step output;         // u, shortcut to out
  Step gradient_sums;  // u, grad, activated to raw_sums and dshortcut; du keeps a part of itself if its type can
  Step finish_sums;    // raw_sums to gate_sums and norm_sums
  Step find_gradient;  // gate_sums to the last coefficients
  Step gradient;       // to du
  int64_t width;       // channels of each part that are worked on together: spans are multiples of it if they can be
};

enum Layout { kNCHW, kNHWC };
enum Type { kFloat, kDouble, kBFloat16, kHalf };

struct OpKernels {
  Kernels at[2][4];  // [Layout][Type]
};
struct KernelTable {
  OpKernels at[3];  // [Op]
};

// One per instruction set, in isa_*.cpp; null where the compiler does not have it.
const KernelTable* generic_kernels();
const KernelTable* avx2_kernels();
const KernelTable* avx512_kernels();

// The kernels for this processor, in dispatch.cpp.
const KernelTable& kernel_table();

}  // namespace shuffle_attention
