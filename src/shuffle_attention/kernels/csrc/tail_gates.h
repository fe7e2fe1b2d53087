// The steps of a block's end that work on the numbers of planes, not on maps; lanes are channels.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Whether du can hold the first part of itself unrounded, or that has to be computed again.
template <class T>
constexpr bool kKeepsPart = sizeof(T) == sizeof(Accumulator<T>);

template <class A>
SIMD_INLINE Vec<A> load_first(const A* p, int64_t count) {
  if (count >= Lanes<A>::count) return load(p);
  A padded[Lanes<A>::count] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = p[i];
  return load(padded);
}

template <class A>
SIMD_INLINE void store_first(A* p, Vec<A> v, int64_t count) {
  if (count >= Lanes<A>::count) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// A row of an array of shape (batch, rows, channels).
template <class A>
SIMD_INLINE A* row_of(void* array, const Tail& t, int64_t image, int rows, int row) {
  return static_cast<A*>(array) + (image * rows + row) * t.map.channels;
}

template <class A>
SIMD_INLINE A* coefficients_of(const Tail& t, Coefficient row) {
  return row_of<A>(t.coefficients, t, 0, kCoefficients, row);
}

// Some neighbouring planes of an image: their statistics and what follows from them.
template <class A>
struct PlanesOf {
  using V = Vec<A>;
  const Tail& t;
  int64_t image, c, count;
  V pivot, rest, scale, from_mean, mean, rho, alpha, slope, cweight, beta;

  SIMD_INLINE PlanesOf(const Tail& t, int64_t image, int64_t c, int64_t count)
      : t(t), image(image), c(c), count(count) {
    const auto& channels = *static_cast<const Channels<A>*>(t.channels);
    pivot = row(t.statistics, kStatistics, kPivot);
    rest = row(t.statistics, kStatistics, kRest);
    scale = channel(channels.scale);
    from_mean = (pivot - channel(channels.mean)) + (rest - channel(channels.rest));
    mean = scale * from_mean + channel(channels.bias);
    const V variance = scale * scale * row(t.statistics, kStatistics, kVariance);
    rho = A(1) / square_root(variance + channels.gates.eps);
    alpha = channel(channels.gates.alpha);
    slope = alpha * rho * scale;
    cweight = channel(channels.gates.slope);
    beta = channel(channels.gates.beta);
  }
  SIMD_INLINE V channel(const A* values) const { return load_first(values + c, count); }
  SIMD_INLINE V row(void* array, int rows, int r) const {
    return load_first<A>(row_of<A>(array, t, image, rows, r) + c, count);
  }
  SIMD_INLINE void set(void* array, int rows, int r, V v) const {
    store_first<A>(row_of<A>(array, t, image, rows, r) + c, v, count);
  }
};

template <class A, class Run>
SIMD_INLINE void for_planes_of(const Tail& t, const Span& span, const Run& run) {
  constexpr int64_t W = Lanes<A>::count;
  for (int h = 0; h < 2; ++h) {
    const int64_t begin = h * (t.map.channels / 2) + span.first, end = begin + span.count;
    for (int64_t c = begin; c < end; c += W) run(PlanesOf<A>(t, span.image, c, end - c < W ? end - c : W));
  }
}

template <class A>
void find_gates(const Tail& t, const Span& span) {
  const Gates<A>& gates = static_cast<const Channels<A>*>(t.channels)->gates;
  for_planes_of<A>(t, span, [&](const PlanesOf<A>& p) {
    const auto set = [&](Coefficient r, Vec<A> v) { store_first(coefficients_of<A>(t, r) + p.c, v, p.count); };
    const Vec<A> offset = p.beta + p.cweight * p.mean - p.slope * p.rest, exponent = offset * A(kToExponent) - gates.log_gain;
    set(kShift, p.mean - p.scale * p.rest);
    set(kSlope, p.slope);
    set(kExponent, exponent);
    set(kGate, gate_of(exponent, gates.inverse_gain));
  });
}

template <class A>
void finish_sums(const Tail& t, const Span& span) {
  const auto& channels = *static_cast<const Channels<A>*>(t.channels);
  for_planes_of<A>(t, span, [&](const PlanesOf<A>& p) {
    using V = Vec<A>;
    const auto raw = [&](RawSum r) { return load_first<A>(row_of<A>(t.raw_sums, t, 0, kRawSums, r) + p.c, p.count); };
    const V q = raw(kQ), h = raw(kH), qd = raw(kQd) - p.rest * q, hd = raw(kHd) - p.rest * h;
    const V dz = q + p.cweight * h;
    const V dzd = qd + p.alpha * p.rho * (channels.gates.eps * p.rho * p.rho) * hd;
    p.set(t.gate_sums, kGateSums, kSumH, h);
    const V by_position = p.scale * p.rho * hd, by_channel = p.mean * h;
    p.set(t.gate_sums, kGateSums, kWeighted, p.channel(channels.gates.spatial) != 0 ? by_position : by_channel);
    p.set(t.norm_sums, kNormSums, kSumDz, dz);
    p.set(t.norm_sums, kNormSums, kSumDzDistance, dzd + p.from_mean * dz);
  });
}

template <class A>
void find_gradient(const Tail& t, const Span& span) {
  const auto& channels = *static_cast<const Channels<A>*>(t.channels);
  const A each = A(1) / t.map.plane;
  for_planes_of<A>(t, span, [&](const PlanesOf<A>& p) {
    using V = Vec<A>;
    const V h = p.row(t.gate_sums, kGateSums, kSumH), weighted = p.row(t.gate_sums, kGateSums, kWeighted);
    const V by_weight = p.channel(channels.by_weight);
    V by_mean, by_distance;
    through_statistics(h, weighted, p.slope, p.scale * p.rho, p.scale * p.cweight, each, by_mean, by_distance);
    by_mean -= p.channel(channels.by_bias) + by_weight * p.from_mean;
    by_distance -= by_weight;
    const auto set = [&](Coefficient r, V v) { store_first(coefficients_of<A>(t, r) + p.c, v, p.count); };
    set(kByMean, by_mean - by_distance * p.rest);
    set(kByDistance, by_distance);
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
