// The formulas of both ops, each once, and the steps that work on planes and not on maps.
//
// Letters as in ../block_reference.py. z is BatchNorm of u, in the layer u itself. A single
// value has type A, as many channels or pixels as a vector has lanes have type V.
#pragma once

#include "arithmetic.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Whether du can keep the first part of itself unrounded; otherwise that is computed twice. Without attention it is a
// product, which takes less time than to keep it.
template <class T, Op kOp>
constexpr bool kKeepsPart = attends(kOp) && sizeof(T) == sizeof(Accumulator<T>);

template <class A>
SIMD_INLINE const Channels<A>& channels_of(const Operands& o) {
  return *static_cast<const Channels<A>*>(o.channels);
}

template <class A>
SIMD_INLINE A* row_of(void* array, const Operands& o, int row) {
  return static_cast<A*>(array) + row * o.map.channels;
}

// The raw sums of an op are those from kFirstSum on.
template <Op kOp>
constexpr int kFirstSum = attends(kOp) ? kH : kQ;
template <Op kOp>
constexpr int kSums = (normalises(kOp) ? kRawSums : kQ) - kFirstSum<kOp>;

// Without attention the raw sums are those that BatchNorm needs.
template <class A, Op kOp>
SIMD_INLINE A* raw_sums_of(const Operands& o, int r) {
  if constexpr (attends(kOp)) return row_of<A>(o.raw_sums, o, r);
  else return row_of<A>(o.norm_sums, o, r == kQ ? kSumDz : kSumDzDistance);
}

// ---- Statistics ----

// A pivot that no value is infinitely far from, unless that is infinite itself.
template <class S>
SIMD_INLINE S finite_pivot(S pivot) {
  return pivot - pivot == 0 ? pivot : S{};
}

// The distance of the mean from the pivot, and the biased variance, from the sums of d and d^2 about the pivot.
template <class S, class A>
SIMD_INLINE void find_moments(S sum, S squares, A each, S& rest, S& variance) {
  rest = sum * each;
  const S raw = squares * each - rest * rest;
  variance = raw < 0 ? S{} : raw;
  variance = squares > A(__FLT_MAX__) && squares - squares != 0 ? squares : variance;  // not infinity - infinity
}

// ---- Values of a map, from the coefficients of their plane: S is A where lanes are pixels, V where they are channels.

template <class A, class S, Op kOp>
struct Plane {
  using V = Vec<A>;
  S pivot, centre, scale, shift, slope, exponent_scale, exponent, by_mean, by_distance;
  A inverse_gain;

  // at(row) is the plane's value in a row of values per channel.
  template <class At>
  SIMD_INLINE void read(const Operands& o, const At& at) {
    const Channels<A>& channels = channels_of<A>(o);
    if constexpr (normalises(kOp)) {
      centre = at(channels.centre);
      scale = at(channels.scale);
      shift = at(channels.shift);
    }
    if constexpr (!attends(kOp)) {
      pivot = centre;
      by_mean = -at(channels.by_bias);
      by_distance = -at(channels.by_weight);
      return;
    }
    const auto coefficient = [&](Coefficient r) { return at(row_of<A>(o.coefficients, o, r)); };
    inverse_gain = channels.gates.inverse_gain;
    pivot = at(row_of<A>(o.statistics, o, kPivot));
    slope = coefficient(kSlope);
    exponent_scale = slope * A(kToExponent);
    exponent = coefficient(kExponent);
    by_mean = coefficient(kByMean);
    by_distance = coefficient(kByDistance);
  }

  SIMD_INLINE V z(V u) const {
    if constexpr (normalises(kOp)) return (u - centre) * scale + shift;
    else return u;
  }
  SIMD_INLINE V exponent_of(V u) const {
    const V t = (u - pivot) * exponent_scale + exponent;
#ifdef SIMD_AVX512
    // An infinite u gives NaN here in lanes of the channel branch. With masks this costs nothing, elsewhere 7 %.
    if constexpr (std::is_same_v<S, V>) return exponent_scale != 0 ? t : exponent;
#endif
    return t;
  }

  SIMD_INLINE V gate(V u) const {
    if constexpr (attends(kOp)) return gate_of(exponent_of(u), inverse_gain);
    else return splat(A(1));
  }

  // a q + S h, the part of du that does not pass through statistics, with q and h.
  SIMD_INLINE V own_gradient(V g, V u, V gate, V& q, V& h) const {
    q = gate * g;
    h = (1 - gate * inverse_gain) * q * z(u);
    if constexpr (!attends(kOp)) return scale * q;
    else if constexpr (normalises(kOp)) return scale * q + slope * h;
    else return q + slope * h;
  }
  // The rest of du.
  SIMD_INLINE V through_statistics(V u) const { return by_mean + by_distance * (u - pivot); }
};

// ---- Planes: lanes are neighbouring channels of an image. ----

// What follows from the statistics of planes.
template <class A, Op kOp, bool Full>
struct Planes {
  using V = Vec<A>;
  const Operands& o;
  const Gates<A>& gates;
  int64_t c, count;  // of the lanes in use, all of them if Full
  Bits<A> spatial;
  V rest, scale, mean;  // the means of d and z
  V from_centre;        // of the pivot
  V rho, slope;         // 0 where nothing passes through the variance: channel branch, one pixel, overflow

  SIMD_INLINE Planes(const Operands& o, int64_t c, int64_t count)
      : o(o), gates(channels_of<A>(o).gates), c(c), count(count), spatial(at(gates.spatial) != 0) {
    const Channels<A>& channels = channels_of<A>(o);
    const V pivot = row(o.statistics, kPivot);
    rest = row(o.statistics, kRest);
    if constexpr (normalises(kOp)) {
      scale = at(channels.scale);
      from_centre = pivot - at(channels.centre);
      mean = scale * (from_centre + rest) + at(channels.shift);
    } else {
      scale = splat(A(1));
      mean = pivot + rest;
    }
    rho = row(o.coefficients, kRho);
    slope = row(o.coefficients, kSlope);
  }
  SIMD_INLINE V at(const A* values) const {
    if (Full || c + Lanes<A>::count <= o.map.channels) return load(values + c);
    A padded[Lanes<A>::count];
    load_first<A>(padded, values + c, count);
    return load(padded);
  }
  SIMD_INLINE V row(void* array, int r) const { return at(row_of<A>(array, o, r)); }
  SIMD_INLINE void set(void* array, int r, V v) const {
    A* const values = row_of<A>(array, o, r) + c;
    if constexpr (Full) return store(values, v);
    for (int64_t i = 0; i < count; ++i) values[i] = v[i];
  }
};

template <class A, Op kOp, class Run>
SIMD_INLINE void for_planes_of(const Operands& o, const Span& span, const Run& run) {
  constexpr int64_t W = Lanes<A>::count;
  for (int h = 0; h < 2; ++h) {
    const int64_t begin = h * (o.map.channels / 2) + span.first, end = begin + span.count;
    int64_t c = begin;
    for (; end - c >= W; c += W) run(Planes<A, kOp, true>(o, c, W));
    if (c < end) run(Planes<A, kOp, false>(o, c, end - c));
  }
}

template <class A, Op kOp>
void find_gates(const Operands& o, const Span& span) {
  for_planes_of<A, kOp>(o, span, [&](const auto& p) {
    using V = Vec<A>;
    V variance = p.row(o.statistics, kVariance);
    if constexpr (normalises(kOp)) variance = p.scale != 0 ? p.scale * p.scale * variance : V{};
    const V rho = p.spatial && o.map.plane > 1 ? A(1) / square_root(variance + p.gates.eps) : V{};
    const V slope = p.at(p.gates.alpha) * rho * p.scale;
    const V by_position = slope * p.rest, by_channel = p.at(p.gates.cweight) * p.mean;
    const V offset = p.at(p.gates.beta) + (p.spatial ? -by_position : by_channel);
    const V exponent = offset * A(kToExponent) - p.gates.log_gain;
    p.set(o.coefficients, kRho, rho);
    p.set(o.coefficients, kSlope, slope);
    p.set(o.coefficients, kExponent, exponent);
    p.set(o.coefficients, kGate, gate_of(exponent, p.gates.inverse_gain));
  });
}

template <class A, Op kOp, bool kNCHW>
void finish_sums(const Operands& o, const Span& span) {
  for_planes_of<A, kOp>(o, span, [&](const auto& p) {
    using V = Vec<A>;
    V h = p.row(o.raw_sums, kH), factor = splat(A(1));  // of q
    if constexpr (kNCHW) {
      // The sums of the channel branch lack the gate, which is one for the plane.
      factor = p.spatial ? factor : p.row(o.coefficients, kGate);
      h = p.spatial ? h : factor * (1 - factor * p.gates.inverse_gain) * h;
    }
    const V hd = p.rho != 0 ? p.row(o.raw_sums, kHd) - p.rest * h : V{};
    const V by_position = p.scale * p.rho * hd, by_channel = p.mean * h;
    p.set(o.gate_sums, kSumH, h);
    p.set(o.gate_sums, kWeighted, p.spatial ? by_position : by_channel);
    if constexpr (normalises(kOp)) {
      const V q = factor * p.row(o.raw_sums, kQ), dz = q + p.at(p.gates.cweight) * h;
      const V dzd = factor * p.row(o.raw_sums, kQd) - p.rest * q + p.at(p.gates.alpha) * p.rho * (p.gates.eps * p.rho * p.rho) * hd;
      p.set(o.norm_sums, kSumDz, dz);
      p.set(o.norm_sums, kSumDzDistance, dzd + (p.from_centre + p.rest) * dz);
    }
  });
}

template <class A, Op kOp>
void find_gradient(const Operands& o, const Span& span) {
  const Channels<A>& channels = channels_of<A>(o);
  const A each = A(1) / o.map.plane;
  for_planes_of<A, kOp>(o, span, [&](const auto& p) {
    using V = Vec<A>;
    V by_distance = -p.slope * p.scale * p.rho * p.row(o.gate_sums, kWeighted) * each;
    by_distance = p.rho != 0 ? by_distance : V{};
    V by_mean = (p.scale * p.at(p.gates.cweight) - p.slope) * p.row(o.gate_sums, kSumH) * each - by_distance * p.rest;
    if constexpr (normalises(kOp)) {
      by_mean -= p.at(channels.by_bias) + p.at(channels.by_weight) * p.from_centre;
      by_distance -= p.at(channels.by_weight);
    }
    p.set(o.coefficients, kByMean, by_mean);
    p.set(o.coefficients, kByDistance, by_distance);
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
