// The layer on (batch, channels, plane) in memory: a plane at a time, in cache after its first read.
//
// A unit is two planes, channel k of each half of the map, whose outputs lie side by side. What has
// a parameter N works on planes of that many vectors, the last of them ragged or not, without a
// loop; N = 0 is for planes of any size from a vector up.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Elements that a pivot is taken from; a plane up to this size is standardised by two exact passes,
// a larger one by its sums of (x - pivot) and (x - pivot)^2, which lose no digits that matter.
constexpr int64_t kPivotElements = 1 << 16;
// Lanes add up this many elements before they are summed, so that long sums keep their digits.
constexpr int64_t kSumElements = 1 << 14;

// The lanes of t that belong to the ragged end of a plane: it is read as the plane's last whole
// vector, of which the vector before has had the lower lanes; or padded, if there is no other.
template <class A>
SIMD_INLINE Vec<A> only_end(Vec<A> t, bool padded, int rest) {
  const int low = padded ? 0 : Lanes<A>::count - rest, high = padded ? rest : Lanes<A>::count;
  const Vec<A> above = lane_numbers<A>() >= low ? t : Vec<A>{};
  return lane_numbers<A>() < high ? above : Vec<A>{};
}

// Sets total[r] to the sum over i < size of the lanes that term(i, t, k) puts into t[r]; k numbers the
// vectors if N > 0.
template <int N, class A, int R, class Term>
SIMD_INLINE void sum_over_plane(int64_t size, A (&total)[R], const Term& term) {
  constexpr int64_t W = Lanes<A>::count;
  Vec<A> t[R];
  for (int r = 0; r < R; ++r) total[r] = 0;
  if constexpr (N > 0) {
    const int rest = size - (N - 1) * W;
    term(N > 1 ? size - W : 0, t, N - 1);
    Vec<A> sums[R];
    for (int r = 0; r < R; ++r) sums[r] = only_end<A>(t[r], N == 1, rest);
    for (int k = 0; k + 1 < N; ++k) {
      term(k * W, t, k);
      for (int r = 0; r < R; ++r) sums[r] += t[r];
    }
    for (int r = 0; r < R; ++r) total[r] = sum_of_lanes<A>(sums[r]);
    return;
  }
  for (int64_t from = 0; from < size; from += kSumElements) {
    const int64_t to = size - from < kSumElements ? size : from + kSumElements;
    Vec<A> sums[4][R] = {};
    int64_t i = from;
    for (; i + 4 * W <= to; i += 4 * W) {
      for (int k = 0; k < 4; ++k) {
        term(i + k * W, t, 0);
        for (int r = 0; r < R; ++r) sums[k][r] += t[r];
      }
    }
    for (; i + W <= to; i += W) {
      term(i, t, 0);
      for (int r = 0; r < R; ++r) sums[0][r] += t[r];
    }
    if (i < to) {
      term(to - W, t, 0);
      for (int r = 0; r < R; ++r) sums[1][r] += only_end<A>(t[r], false, to - i);
    }
    for (int r = 0; r < R; ++r) {
      total[r] += sum_of_lanes<A>((sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r]));
    }
  }
}

// Stores value(i, k) for every i. The ragged end is computed before the vector that it overlaps is
// stored, because value may read from the output.
template <int N, class T, class Value>
SIMD_INLINE void store_plane(T* out, int64_t size, const Value& value) {
  using V = Vec<Accumulator<T>>;
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  if constexpr (N > 0) {
    V values[N];
    for (int k = 0; k < N; ++k) values[k] = value(k < N - 1 ? k * W : N > 1 ? size - W : 0, k);
    for (int k = 0; k < N; ++k) store(out + (k < N - 1 ? k * W : N > 1 ? size - W : 0), values[k]);
    return;
  }
  const V last = value(size - W, 0);
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    const V first = value(i, 0), second = value(i + W, 0);
    store(out + i, first);
    store(out + i + W, second);
  }
  if (i + W <= size) store(out + i, value(i, 0));
  store(out + size - W, last);
}

template <class A>
struct PlaneMoments {
  A pivot, offset, variance;  // the mean is pivot + offset
};

template <int N, class T>
SIMD_INLINE Accumulator<T> mean_of(const T* x, int64_t size) {
  Accumulator<T> sum[1];
  sum_over_plane<N>(size, sum, [&](int64_t i, Vec<Accumulator<T>>* t, int) { t[0] = load(x + i); });
  return sum[0] / size;
}

// Of a few vectors nearly any value will do for a pivot, and to wait for the mean takes longer than
// all else: if these elements alone differ from the rest, the variance loses 4 bits of 24.
template <int N, class T, class A = Accumulator<T>>
SIMD_INLINE A guess_mean(const T* x, int64_t size) {
  constexpr int W = Lanes<A>::count;
  if (N == 1) return load(x)[0];
  const Vec<A> v = load(x) + load(x + size - W);
  return (v[0] + v[W / 2]) * A(0.25);
}

template <int N, class T, class A = Accumulator<T>>
SIMD_INLINE PlaneMoments<A> moments_of(const T* x, int64_t size) {
  const A pivot = N > 0 ? guess_mean<N>(x, size) : mean_of<N>(x, size < kPivotElements ? size : kPivotElements);
  A sums[2], offset, variance;
  sum_over_plane<N>(size, sums, [&](int64_t i, Vec<A>* t, int) {
    t[0] = load(x + i) - pivot;
    t[1] = t[0] * t[0];
  });
  find_moments(sums[0], sums[1], A(1) / size, offset, variance);
  return {pivot, offset, variance};
}

template <int N, class T, class A = Accumulator<T>>
SIMD_INLINE void forward_plane(const T* x, T* y, int64_t size, int64_t c, const Gates<A>& gates) {
  constexpr A to_exponent = kToExponent;
  if (gates.spatial[c] != 0) {
    const PlaneMoments<A> s = moments_of<N>(x, size);
    const A rstd = 1 / square_root(s.variance + gates.eps);
    const A scale = to_exponent * gates.alpha[c] * rstd, shift = to_exponent * gates.beta[c] - gates.log_gain - scale * s.offset;
    store_plane<N>(y, size, [&](int64_t i, int) {
      const Vec<A> v = load(x + i);
      return gated(v, (v - s.pivot) * scale + shift, gates.inverse_gain);
    });
  } else {
    const A gate = gate_of(
        to_exponent * (gates.slope[c] * mean_of<N>(x, size) + gates.beta[c]) - gates.log_gain, gates.inverse_gain);
    store_plane<N>(y, size, [&](int64_t i, int) { return load(x + i) * gate; });
  }
}

// `stash` holds a plane in the accumulator's type if N = 0; for maps of that type it is dx itself.
template <int N, class T, class A = Accumulator<T>>
SIMD_INLINE void backward_plane(
    const T* x, const T* dy, T* dx, A* stash, int64_t size, int64_t c, const Gates<A>& gates, A& sum, A& weighted) {
  constexpr A to_exponent = kToExponent;
  const A each = A(1) / size;
  A sums[2];
  if (gates.spatial[c] != 0) {
    const PlaneMoments<A> s = moments_of<N>(x, size);
    const A rstd = 1 / square_root(s.variance + gates.eps);
    const A scale = gates.alpha[c] * rstd, shift = gates.beta[c] - scale * s.offset;
    const A exponent_scale = to_exponent * scale, exponent_shift = to_exponent * shift - gates.log_gain;
    Vec<A> kept[N > 0 ? N : 1];
    sum_over_plane<N>(size, sums, [&](int64_t i, Vec<A>* t, int k) {
      const Vec<A> v = load(x + i), d = v - s.pivot;
      Vec<A> q;
      const Vec<A> own = own_gradient(
          load(dy + i), v, d * exponent_scale + exponent_shift, A(1), scale, gates.inverse_gain, q, t[0]);
      t[1] = t[0] * d;
      if (N > 0) kept[k] = own;
      else store(stash + i, own);
    });
    sum = sums[0];
    weighted = rstd * (sums[1] - s.offset * sums[0]);
    A by_mean, by_distance;
    through_statistics(sum, weighted, scale, rstd, A(0), each, by_mean, by_distance);
    by_mean -= by_distance * s.offset;
    store_plane<N>(dx, size, [&](int64_t i, int k) {
      return (N > 0 ? kept[k] : load(stash + i)) + (by_mean + by_distance * (load(x + i) - s.pivot));
    });
  } else {
    sum_over_plane<N>(size, sums, [&](int64_t i, Vec<A>* t, int) {
      t[0] = load(x + i);
      t[1] = t[0] * load(dy + i);
    });
    const A mean = sums[0] * each;
    const A gate = gate_of(to_exponent * (gates.slope[c] * mean + gates.beta[c]) - gates.log_gain, gates.inverse_gain);
    sum = gate * (1 - gate * gates.inverse_gain) * sums[1];
    weighted = sum * mean;
    const A by_mean = gates.slope[c] * sum * each;
    store_plane<N>(dx, size, [&](int64_t i, int) { return load(dy + i) * gate + by_mean; });
  }
}

// A plane smaller than a vector, copied to where a whole vector may be read and written.
template <class T>
struct Padded {
  static constexpr int64_t W = Lanes<Accumulator<T>>::count;
  T at[W];
  Padded() = default;
  SIMD_INLINE Padded(const T* p, int64_t size) {
    for (int64_t i = 0; i < W; ++i) at[i] = i < size ? p[i] : T{};
  }
  SIMD_INLINE void copy_to(T* p, int64_t size) const {
    for (int64_t i = 0; i < size; ++i) p[i] = at[i];
  }
};

// Calls run(channel, source, target, image) for the planes of units begin to end; source and target
// are the offsets of a plane in the input and in the output of the layer.
template <class Run>
SIMD_INLINE void for_planes(const Map& map, int64_t begin, int64_t end, const Run& run) {
  const int64_t half = map.channels / 2;
  int64_t image = begin / half, k = begin % half;
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int h = 0; h < 2; ++h) {
      const int64_t c = k + h * half, first = image * map.channels;
      run(c, (first + c) * map.plane, (first + (map.shuffle ? 2 * k + h : c)) * map.plane, image);
    }
    if (++k == half) k = 0, ++image;
  }
}

// The most vectors that a plane has code of its own for.
template <class A>
constexpr int kMostVectors = SIMD_BYTES < 32 ? 1 : Lanes<A>::count >= 16 ? 4 : 8;

template <class T, int N = kMostVectors<Accumulator<T>>>
void forward_planes(const Map& map, const void* gates, const void* x, void* y, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  constexpr int64_t W = Lanes<A>::count;
  if constexpr (N > 0) {
    if ((map.plane + W - 1) / W != N) return forward_planes<T, N - 1>(map, gates, x, y, begin, end);
  }
  const auto& g = *static_cast<const Gates<A>*>(gates);
  for_planes(map, begin, end, [&](int64_t c, int64_t source, int64_t target, int64_t) {
    const T* const from = static_cast<const T*>(x) + source;
    T* const to = static_cast<T*>(y) + target;
    if (N != 1 || map.plane == W) return forward_plane<N>(from, to, map.plane, c, g);
    const Padded<T> in(from, map.plane);
    Padded<T> out;
    forward_plane<N>(in.at, out.at, map.plane, c, g);
    out.copy_to(to, map.plane);
  });
}

template <class T, int N = kMostVectors<Accumulator<T>>>
void backward_planes(
    const Map& map, const void* gates, const void* x, const void* dy, void* dx, void* sums, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  constexpr int64_t W = Lanes<A>::count;
  if constexpr (N > 0) {
    if ((map.plane + W - 1) / W != N) return backward_planes<T, N - 1>(map, gates, x, dy, dx, sums, begin, end);
  }
  const auto& g = *static_cast<const Gates<A>*>(gates);
  constexpr bool separate = N == 0 && sizeof(T) != sizeof(A);
  A* const scratch = separate ? new A[map.plane + W] : nullptr;
  for_planes(map, begin, end, [&](int64_t c, int64_t source, int64_t target, int64_t image) {
    const T *const from = static_cast<const T*>(x) + source, *const grad = static_cast<const T*>(dy) + target;
    T* const to = static_cast<T*>(dx) + source;
    A* const sum = static_cast<A*>(sums) + 2 * image * map.channels + c;
    A& weighted = sum[map.channels];
    const auto stash = [&](T* out) { return separate ? scratch : reinterpret_cast<A*>(out); };
    if (N != 1 || map.plane == W) {
      return backward_plane<N>(from, grad, to, stash(to), map.plane, c, g, *sum, weighted);
    }
    const Padded<T> in(from, map.plane), grad_in(grad, map.plane);
    Padded<T> out;
    backward_plane<N>(in.at, grad_in.at, out.at, stash(out.at), map.plane, c, g, *sum, weighted);
    out.copy_to(to, map.plane);
  });
  delete[] scratch;
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
