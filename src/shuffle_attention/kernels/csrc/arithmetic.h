// Arithmetic on vectors: roots, reciprocals and the gate.
#pragma once

#include "simd.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

template <class V>
SIMD_INLINE V square_root(V v) {
  constexpr bool is_float = sizeof(v[0]) == sizeof(float);
#if defined(SIMD_AVX512)
  if constexpr (is_float) return (V)_mm512_sqrt_ps((__m512)v);
  else return (V)_mm512_sqrt_pd((__m512d)v);
#elif defined(SIMD_AVX2)
  if constexpr (is_float) return (V)_mm256_sqrt_ps((__m256)v);
  else return (V)_mm256_sqrt_pd((__m256d)v);
#else
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) v[i] = is_float ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]);
  return v;
#endif
}

// Keeps a NaN.
template <class V, class A>
SIMD_INLINE V clamp(V v, A low, A high) {
  v = v > high ? high - V{} : v;
  return v < low ? low - V{} : v;
}

// 1 / v for 2^-100 <= v <= 2^126.
template <class V>
SIMD_INLINE V reciprocal(V v) {
  return 1.0f / v;
}

#if defined(SIMD_AVX512)
SIMD_INLINE FloatLanes clamp(FloatLanes v, float low, float high) {
  // The order of the operands keeps a NaN.
  return (FloatLanes)_mm512_max_ps(_mm512_set1_ps(low), _mm512_min_ps(_mm512_set1_ps(high), (__m512)v));
}

SIMD_INLINE FloatLanes reciprocal(FloatLanes v) {
  // A Newton step from 14 bits; a division would take longer than the whole exponential.
  const FloatLanes r = (FloatLanes)_mm512_rcp14_ps((__m512)v);
  return r + r * (1.0f - v * r);
}
#elif defined(SIMD_AVX2)
SIMD_INLINE FloatLanes clamp(FloatLanes v, float low, float high) {
  return (FloatLanes)_mm256_max_ps(_mm256_set1_ps(low), _mm256_min_ps(_mm256_set1_ps(high), (__m256)v));
}
#endif

// 2^t to about 1 ulp; beyond |t| = 126 (float) or 1022 (double) it stays what it is there. Keeps a NaN.
SIMD_INLINE FloatLanes power_of_two(FloatLanes t) {
  t = clamp(t, -126.0f, 126.0f);
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the lowest bits; 127 is the exponent's bias.
  constexpr float kRound = 0x1.8p23f + 127;
  const FloatLanes shifted = t + kRound;
  const FloatLanes f = t - (shifted - kRound);
  const FloatLanes whole = as<FloatLanes>(as<FloatWords>(shifted) << 23);
  // 2^f = 1 + f q(f) on |f| <= 1/2; q is the minimax fit of the relative error, 3e-9.
  FloatLanes q = f * 0x1.470abep-13f + 0x1.5f7236p-10f;
  q = q * f + 0x1.3b2710p-7f;
  q = q * f + 0x1.c6ae74p-5f;
  q = q * f + 0x1.ebfbe2p-3f;
  q = q * f + 0x1.62e432p-1f;
  return (q * f + 1.0f) * whole;
}

SIMD_INLINE DoubleLanes power_of_two(DoubleLanes t) {
  t = clamp(t, -1022.0, 1022.0);
  constexpr double kRound = 0x1.8p52 + 1023;
  const DoubleLanes shifted = t + kRound;
  const DoubleLanes r = (t - (shifted - kRound)) * 0x1.62e42fefa39efp-1;  // ln 2
  const DoubleLanes whole = as<DoubleLanes>(as<DoubleWords>(shifted) << 52);
  // Taylor's series of exp(r) to the 13th power: the next term is 4e-18 at r = ln(2) / 2.
  constexpr double coefficients[] = {1.0 / 479001600.0, 1.0 / 39916800.0, 1.0 / 3628800.0, 1.0 / 362880.0,
                                     1.0 / 40320.0,     1.0 / 5040.0,     1.0 / 720.0,     1.0 / 120.0,
                                     1.0 / 24.0,        1.0 / 6.0,        0.5,             1.0};
  DoubleLanes q = 1.0 / 6227020800.0 - DoubleLanes{};
  for (double c : coefficients) q = q * r + c;
  return (q * r + 1.0) * whole;
}

// gain * sigmoid(z) is gate_of(kToExponent * z - log2 gain, 1 / gain).
constexpr double kToExponent = -0x1.71547652b82fep0;  // -1 / ln 2

// 1 / (one + 2^t), to about 2 ulp, for `one` near 1.
template <class V, class A>
SIMD_INLINE V gate_of(V t, A one) {
  return reciprocal(power_of_two(t) + one);
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
