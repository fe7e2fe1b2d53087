// The formulas of the layer and of a block's end, over vectors or single values; letters as in block_reference.py.
//
// V is a vector of values of the map; S is the type of what belongs to a plane: a vector where lanes are
// channels, a single value where lanes are pixels. For the layer alone, z = u, so that a = 1.
#pragma once

#include "arithmetic.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// The distance of the mean from the pivot, and the biased variance, from sums of d and d^2 about the pivot.
template <class S, class A>
SIMD_INLINE void find_moments(S sum, S squares, A each, S& rest, S& variance) {
  rest = sum * each;
  const S raw = squares * each - rest * rest;
  variance = raw < 0 ? S{} : raw;
}

// The output before shortcut and ReLU, where the exponent of the gate is t.
template <class V, class A>
SIMD_INLINE V gated(V z, V t, A inverse_gain) {
  return z * gate_of(t, inverse_gain);
}

// a q + S h, the part of the gradient that is a position's own, with q and h.
template <class V, class S, class A>
SIMD_INLINE V own_gradient(V g, V z, V t, S a, S slope, A inverse_gain, V& q, V& h) {
  const V gate = gate_of(t, inverse_gain);
  q = gate * g;
  h = (1 - gate * inverse_gain) * q * z;
  return a * q + slope * h;
}

// The rest of the gradient, through the statistics: by_mean + by_distance * (u - mean), from the sums over the plane
// of h and of h times the normalised plane. `a_rho` and `a_cweight` are a times rho and a times cweight.
template <class S, class A>
SIMD_INLINE void through_statistics(S sum, S weighted, S slope, S a_rho, S a_cweight, A each, S& by_mean, S& by_distance) {
  by_distance = -slope * a_rho * weighted * each;
  by_mean = (a_cweight - slope) * sum * each;
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
