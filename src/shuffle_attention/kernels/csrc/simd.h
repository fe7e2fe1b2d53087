// Vectors of SIMD_BYTES bytes, in the vector extension of GCC and Clang.
//
// Each isa_*.cpp compiles this and all headers that include it, in a namespace named after its instruction set: an
// inline function that two instruction sets shared would be kept by the linker once for both. For the same reason
// nothing here calls the standard library. Opened alone, a header is that of any processor.
#pragma once

#include "kernels.h"

#ifndef SIMD_NAMESPACE
#define SIMD_NAMESPACE generic
#define SIMD_BYTES 16
#endif

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

#define SIMD_ALWAYS __attribute__((always_inline))  // of a lambda
#define SIMD_INLINE inline SIMD_ALWAYS

typedef float FloatLanes __attribute__((vector_size(SIMD_BYTES)));
typedef int32_t FloatBits __attribute__((vector_size(SIMD_BYTES)));
typedef uint32_t FloatWords __attribute__((vector_size(SIMD_BYTES)));
typedef uint16_t HalfWords __attribute__((vector_size(SIMD_BYTES / 2)));
typedef double DoubleLanes __attribute__((vector_size(SIMD_BYTES)));
typedef uint64_t DoubleWords __attribute__((vector_size(SIMD_BYTES)));
typedef int64_t DoubleBits __attribute__((vector_size(SIMD_BYTES)));

template <class A>
struct Lanes;
template <>
struct Lanes<float> {
  using V = FloatLanes;
  using I = FloatBits;
  static constexpr int count = SIMD_BYTES / 4;
};
template <>
struct Lanes<double> {
  using V = DoubleLanes;
  using I = DoubleBits;
  static constexpr int count = SIMD_BYTES / 8;
};
template <class A>
using Vec = typename Lanes<A>::V;
template <class A>
using Bits = typename Lanes<A>::I;

template <class To, class From>
SIMD_INLINE To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast keeps every bit");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class A>
SIMD_INLINE Vec<A> splat(A value) {
  return value - Vec<A>{};
}

// ---- Lanes in another order ----

template <class A>
using LaneIndices = std::make_integer_sequence<int, Lanes<A>::count>;

// Lane i of the result is lane Order::at(i) of a followed by b.
template <class A, class Order, int... I>
SIMD_INLINE Vec<A> permute(Vec<A> a, Vec<A> b, Order, std::integer_sequence<int, I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Order::at(I)...);
#else
  return __builtin_shuffle(a, b, Bits<A>{Order::at(I)...});
#endif
}
template <class A, class Order>
SIMD_INLINE Vec<A> permute(Vec<A> a, Vec<A> b, Order order) {
  return permute<A>(a, b, order, LaneIndices<A>{});
}

template <class A, int... I>
SIMD_INLINE Bits<A> lane_numbers(std::integer_sequence<int, I...>) {
  return Bits<A>{I...};
}

template <int W, int Half>
struct Interleaved {
  static constexpr int at(int i) { return (Half * W + i) / 2 + (i % 2 ? W : 0); }
};
template <int Parity>
struct EveryOther {
  static constexpr int at(int i) { return 2 * i + Parity; }
};
template <int W, int By>
struct Rotated {
  static constexpr int at(int i) { return (i + By) % W; }
};

// (a0 a1 ..), (b0 b1 ..) to (a0 b0 a1 b1 ..): `first` is the lower half of the result.
template <class A>
SIMD_INLINE void interleave(Vec<A> a, Vec<A> b, Vec<A>& first, Vec<A>& second) {
  constexpr int W = Lanes<A>::count;
  first = permute<A>(a, b, Interleaved<W, 0>{});
  second = permute<A>(a, b, Interleaved<W, 1>{});
}

template <class A>
SIMD_INLINE void deinterleave(Vec<A> first, Vec<A> second, Vec<A>& a, Vec<A>& b) {
  a = permute<A>(first, second, EveryOther<0>{});
  b = permute<A>(first, second, EveryOther<1>{});
}

// Lane i of the result is lane from[i]. It pays where lanes are masked at no cost.
#if defined(SIMD_AVX512)
constexpr bool kExchanges = true;
SIMD_INLINE FloatLanes exchanged(FloatLanes v, FloatBits from) {
  return (FloatLanes)_mm512_permutexvar_ps((__m512i)from, (__m512)v);
}
SIMD_INLINE DoubleLanes exchanged(DoubleLanes v, DoubleBits from) {
  return (DoubleLanes)_mm512_permutexvar_pd((__m512i)from, (__m512d)v);
}
#else
constexpr bool kExchanges = false;
#endif

template <class A, int By = Lanes<A>::count / 2>
SIMD_INLINE A sum_of_lanes(Vec<A> v) {
  if constexpr (By == 0) {
    return v[0];
  } else {
    return sum_of_lanes<A, By / 2>(v + permute<A>(v, v, Rotated<Lanes<A>::count, By>{}));
  }
}

// ---- Memory ----

template <class T>
struct Memory {  // float and double
  using A = T;
  static SIMD_INLINE Vec<A> load(const T* p) {
    Vec<A> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static SIMD_INLINE void store(T* p, Vec<A> v) { __builtin_memcpy(p, &v, sizeof v); }
};

SIMD_INLINE FloatWords load_words(const void* p) {
  HalfWords half;
  __builtin_memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, FloatWords);
}

SIMD_INLINE void store_words(void* p, FloatWords words) {
  const HalfWords half = __builtin_convertvector(words, HalfWords);
  __builtin_memcpy(p, &half, sizeof half);
}

template <>
struct Memory<BFloat16> {
  using A = float;
  static SIMD_INLINE FloatLanes load(const BFloat16* p) { return as<FloatLanes>(load_words(p) << 16); }
  static SIMD_INLINE void store(BFloat16* p, FloatLanes v) {
    const FloatWords bits = as<FloatWords>(v);
    const FloatWords rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    store_words(p, v == v ? rounded : (bits >> 16) | 0x40);
  }
};

template <>
struct Memory<Half> {
  using A = float;
#if defined(SIMD_AVX512)
  static SIMD_INLINE FloatLanes load(const Half* p) {
    return (FloatLanes)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static SIMD_INLINE void store(Half* p, FloatLanes v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
  }
#elif defined(SIMD_AVX2)
  static SIMD_INLINE FloatLanes load(const Half* p) {
    return (FloatLanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
  }
  static SIMD_INLINE void store(Half* p, FloatLanes v) {
    _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static SIMD_INLINE FloatLanes load(const Half* p) {
    const FloatWords h = load_words(p);
    const FloatWords magnitude = (h & 0x7fff) << 13;
    // The exponents differ by 112; the product also makes subnormal halves normal.
    const FloatWords finite = as<FloatWords>(as<FloatLanes>(magnitude) * 0x1p112f);
    const FloatWords value = magnitude >= (0x7c00u << 13) ? magnitude | 0x7f800000 : finite;
    return as<FloatLanes>(value | ((h & 0x8000) << 16));
  }
  static SIMD_INLINE void store(Half* p, FloatLanes v) {
    const FloatWords bits = as<FloatWords>(v), sign = (bits >> 16) & 0x8000, a = bits & 0x7fffffff;
    const FloatWords normal = (a + 0xfff + ((a >> 13) & 1) - (112u << 23)) >> 13;  // ties to even
    // Adding 1/2 leaves the subnormal half, rounded, in the lowest bits.
    const FloatWords subnormal = as<FloatWords>(as<FloatLanes>(a) + 0.5f) - as<FloatWords>(splat(0.5f));
    const FloatWords finite = a < (113u << 23) ? subnormal : normal;
    const FloatWords infinite = (a > 0x7f800000u) ? FloatWords{} + 0x7e00 : FloatWords{} + 0x7c00;
    store_words(p, (a >= 0x477ff000u ? infinite : finite) | sign);
  }
#endif
};

template <class T>
SIMD_INLINE Vec<Accumulator<T>> load(const T* p) {
  return Memory<T>::load(p);
}
template <class T>
SIMD_INLINE void store(T* p, Vec<Accumulator<T>> v) {
  Memory<T>::store(p, v);
}

// ---- The first `count` values of a vector: the others are 0, or stay in memory as they are ----

template <class T>
using Values = T[Lanes<Accumulator<T>>::count];

#if defined(SIMD_AVX512)
SIMD_INLINE uint32_t first_lanes(int64_t count) { return (uint32_t(1) << count) - 1; }
#elif defined(SIMD_AVX2)  // for two bytes it has no masks
template <class A>
SIMD_INLINE __m256i first_lanes(int64_t count) {
  return (__m256i)(lane_numbers<A>(LaneIndices<A>{}) < static_cast<int>(count));
}
#endif

template <class T>
SIMD_INLINE void load_first(Values<T>& to, const T* from, int64_t count) {
#if defined(SIMD_AVX512)
  const uint32_t lanes = first_lanes(count);
  if constexpr (sizeof(T) == 2) return _mm256_storeu_si256((__m256i*)to, _mm256_maskz_loadu_epi16(lanes, from));
  if constexpr (sizeof(T) == 4) return _mm512_storeu_si512(to, _mm512_maskz_loadu_epi32(lanes, from));
  if constexpr (sizeof(T) == 8) return _mm512_storeu_si512(to, _mm512_maskz_loadu_epi64(lanes, from));
#elif defined(SIMD_AVX2)
  __m256i* const all = (__m256i*)to;
  if constexpr (sizeof(T) == 4)
    return _mm256_storeu_si256(all, _mm256_maskload_epi32((const int*)from, first_lanes<float>(count)));
  if constexpr (sizeof(T) == 8)
    return _mm256_storeu_si256(all, _mm256_maskload_epi64((const long long*)from, first_lanes<double>(count)));
#endif
  for (int64_t i = 0; i < Lanes<Accumulator<T>>::count; ++i) to[i] = i < count ? from[i] : T{};
}

template <class T>
SIMD_INLINE void store_first(T* to, const Values<T>& from, int64_t count) {
#if defined(SIMD_AVX512)
  const uint32_t lanes = first_lanes(count);
  if constexpr (sizeof(T) == 2) return _mm256_mask_storeu_epi16(to, lanes, _mm256_loadu_si256((const __m256i*)from));
  if constexpr (sizeof(T) == 4) return _mm512_mask_storeu_epi32(to, lanes, _mm512_loadu_si512(from));
  if constexpr (sizeof(T) == 8) return _mm512_mask_storeu_epi64(to, lanes, _mm512_loadu_si512(from));
#elif defined(SIMD_AVX2)
  const __m256i* const all = (const __m256i*)from;
  if constexpr (sizeof(T) == 4)
    return _mm256_maskstore_epi32((int*)to, first_lanes<float>(count), _mm256_loadu_si256(all));
  if constexpr (sizeof(T) == 8)
    return _mm256_maskstore_epi64((long long*)to, first_lanes<double>(count), _mm256_loadu_si256(all));
#endif
  for (int64_t i = 0; i < Lanes<Accumulator<T>>::count; ++i) {
    if (i < count) to[i] = from[i];
  }
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
