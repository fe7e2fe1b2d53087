// The passes over maps in NCHW, (batch, channels, plane) in memory: lanes are pixels of one plane.
//
// N is the number of vectors of a plane, the last of them ragged or not: small planes are worked on without loops.
// N = 0 is for planes of any size from a vector up.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Elements that a pivot is taken from; a plane up to this size is standardised by two exact passes,
// a larger one by its sums of (x - pivot) and (x - pivot)^2, which lose no digits that matter.
constexpr int64_t kPivotElements = 1 << 16;
// Lanes add up this many elements before they are summed, so that long sums keep their digits.
constexpr int64_t kSumElements = 1 << 14;
// The most vectors that a plane has code without loops for.
template <class A>
constexpr int kMostVectors = SIMD_BYTES < 32 ? 1 : Lanes<A>::count >= 16 ? 4 : 8;

// Calls run(N) as a constant.
template <class A, int N = kMostVectors<A>, class Run>
SIMD_INLINE void for_size(int64_t size, const Run& run) {
  if constexpr (N > 0) {
    if ((size + Lanes<A>::count - 1) / Lanes<A>::count != N) return for_size<A, N - 1>(size, run);
  }
  run(std::integral_constant<int, N>{});
}

// ---- One plane ----

// The lanes of t that belong to the ragged end of a plane: it is read as the plane's last whole
// vector, of which the vector before has had the lower lanes; or padded, if there is no other.
template <class A>
SIMD_INLINE Vec<A> only_end(Vec<A> t, bool padded, int rest) {
  const int low = padded ? 0 : Lanes<A>::count - rest, high = padded ? rest : Lanes<A>::count;
  const Bits<A> lanes = lane_numbers<A>(LaneIndices<A>{});
  const Vec<A> above = lanes >= low ? t : Vec<A>{};
  return lanes < high ? above : Vec<A>{};
}

// Sets total[r] to the sum over i < size of the lanes that term(i, t) puts into t[r].
template <int N, class A, int R, class Term>
SIMD_INLINE void sum_over_plane(int64_t size, A (&total)[R], const Term& term) {
  constexpr int64_t W = Lanes<A>::count;
  Vec<A> t[R];
  for (int r = 0; r < R; ++r) total[r] = 0;
  if constexpr (N > 0) {
    const int rest = size - (N - 1) * W;
    term(N > 1 ? size - W : 0, t);
    Vec<A> sums[R];
    for (int r = 0; r < R; ++r) sums[r] = only_end<A>(t[r], N == 1, rest);
    for (int k = 0; k + 1 < N; ++k) {
      term(k * W, t);
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
        term(i + k * W, t);
        for (int r = 0; r < R; ++r) sums[k][r] += t[r];
      }
    }
    for (; i + W <= to; i += W) {
      term(i, t);
      for (int r = 0; r < R; ++r) sums[0][r] += t[r];
    }
    if (i < to) {
      term(to - W, t);
      for (int r = 0; r < R; ++r) sums[1][r] += only_end<A>(t[r], false, to - i);
    }
    for (int r = 0; r < R; ++r) {
      total[r] += sum_of_lanes<A>((sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r]));
    }
  }
}

// Stores value(i) for every i. The ragged end is computed before the vector that it overlaps is
// stored, because value may read from the output.
template <int N, class T, class Value>
SIMD_INLINE void store_plane(T* out, int64_t size, const Value& value) {
  using V = Vec<Accumulator<T>>;
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  if constexpr (N > 0) {
    V values[N];
    for (int k = 0; k < N; ++k) values[k] = value(k < N - 1 ? k * W : N > 1 ? size - W : 0);
    for (int k = 0; k < N; ++k) store(out + (k < N - 1 ? k * W : N > 1 ? size - W : 0), values[k]);
    return;
  }
  const V last = value(size - W);
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    const V first = value(i), second = value(i + W);
    store(out + i, first);
    store(out + i + W, second);
  }
  if (i + W <= size) store(out + i, value(i));
  store(out + size - W, last);
}

template <int N, class T>
SIMD_INLINE Accumulator<T> mean_of(const T* x, int64_t size) {
  Accumulator<T> sum[1];
  sum_over_plane<N>(size, sum, [&](int64_t i, Vec<Accumulator<T>>* t) { t[0] = load(x + i); });
  return sum[0] / size;
}

// Nearly any value will do for a pivot, and the mean is waited for: the mean of four elements of a few vectors, or of
// one value in 16 and more, evenly spread. Where they alone differ from the rest, the variance loses 4 bits of 24.
template <int N, class T, class A = Accumulator<T>>
SIMD_INLINE A guess_mean(const T* x, int64_t size) {
  constexpr int64_t W = Lanes<A>::count;
  if (N == 1) return load(x)[0];
  if constexpr (N > 0) {
    const Vec<A> v = load(x) + load(x + size - W);
    return (v[0] + v[W / 2]) * A(0.25);
  }
  constexpr int64_t kSampled = 4;
  if (size > 16 * kSampled * W) return mean_of<N>(x, size < kPivotElements ? size : kPivotElements);
  Vec<A> v{};
  for (int64_t k = 0; k < kSampled; ++k) v += load(x + k * (size - W) / (kSampled - 1));
  return sum_of_lanes<A>(v) * (A(1) / (kSampled * W));
}

// ---- A map ----

// A plane of a map, which may be null.
template <int N, class T>
struct Readable {
  Values<T> padded;  // in place of a plane that is smaller than a vector
  const T* at;
  SIMD_INLINE Readable(const void* map, int64_t offset, int64_t size) : at(static_cast<const T*>(map)) {
    if (!at) return;
    at += offset;
    if (N != 1 || size == Lanes<Accumulator<T>>::count) return;
    load_first<T>(padded, at, size);
    at = padded;
  }
};

// A plane of a map to be written; `at` has what was there before.
template <int N, class T>
struct Writable : Readable<N, T> {
  T *at, *target;
  int64_t size;
  SIMD_INLINE Writable(void* map, int64_t offset, int64_t size)
      : Readable<N, T>(map, offset, size), at(const_cast<T*>(Readable<N, T>::at)), target(nullptr), size(size) {
    if (N == 1 && at == this->padded) target = static_cast<T*>(map) + offset;
  }
  SIMD_INLINE ~Writable() {
    if (N != 1 || !target) return;
    store_first<T>(target, this->padded, size);
  }
};

// Calls run(N, channel, source, target) with the offsets of a plane before and after the shuffle.
template <class A, int kParts, class Run>
SIMD_INLINE void for_planes(const Operands& o, const Span& span, const Run& run) {
  const Map& map = o.map;
  const int64_t part = map.channels / kParts, first = span.image * map.channels;
  for_size<A>(map.plane, [&](auto n) {
    for (int64_t k = span.first; k < span.first + span.count; ++k) {
      for (int h = 0; h < kParts; ++h) {
        const int64_t c = k + h * part;
        run(n, c, (first + c) * map.plane, (first + (map.shuffle ? 2 * k + h : c)) * map.plane);
      }
    }
  });
}

template <class A, Op kOp>
SIMD_INLINE Plane<A, A, kOp> plane_of(const Operands& o, int64_t c) {
  Plane<A, A, kOp> plane;
  plane.read(o, [c](const A* row) { return row[c]; });
  return plane;
}

// Whether a channel has one gate for its plane.
template <class A, Op kOp>
SIMD_INLINE bool gated_as_one(const Operands& o, int64_t c) {
  return attends(kOp) && channels_of<A>(o).gates.spatial[c] == 0;
}

template <class T, Op kOp>
void statistics_nchw(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = o.map.plane;
  for_planes<A, parts_of(kOp)>(o, span, [&](auto n, int64_t c, int64_t source, int64_t target) {
    constexpr int N = n.value;
    const Readable<N, T> u(o.u, source, size);
    A pivot, rest = 0, variance = 0;
    if (!normalises(kOp) && gated_as_one<A, kOp>(o, c)) {
      if (!o.grad) {
        pivot = mean_of<N>(u.at, size);
      } else {  // while the plane is at hand
        const Readable<N, T> grad(o.grad, target, size);
        A sums[2];
        sum_over_plane<N>(size, sums, [&](int64_t i, V* t) {
          t[0] = load(u.at + i);
          t[1] = t[0] * load(grad.at + i);
        });
        pivot = sums[0] / size;
        row_of<A>(o.raw_sums, o, kH)[c] = sums[1];
      }
    } else {
      A sums[2];
      pivot = finite_pivot(guess_mean<N>(u.at, size));
      sum_over_plane<N>(size, sums, [&](int64_t i, V* t) {
        t[0] = load(u.at + i) - pivot;
        t[1] = t[0] * t[0];
      });
      find_moments(sums[0], sums[1], A(1) / size, rest, variance);
    }
    row_of<A>(o.statistics, o, kPivot)[c] = pivot;
    row_of<A>(o.statistics, o, kRest)[c] = rest;
    row_of<A>(o.statistics, o, kVariance)[c] = variance;
  });
}

template <class T, Op kOp>
void output_nchw(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = o.map.plane;
  for_planes<A, parts_of(kOp)>(o, span, [&](auto n, int64_t c, int64_t source, int64_t target) {
    constexpr int N = n.value;
    const Readable<N, T> u(o.u, source, size), shortcut(normalises(kOp) ? o.shortcut : nullptr, target, size);
    const Writable<N, T> out(o.out, target, size);
    const auto p = plane_of<A, kOp>(o, c);
    const auto finish = [&](V y, int64_t i) {
      if (!normalises(kOp)) return y;
      if (shortcut.at) y += load(shortcut.at + i);
      return o.relu ? (y < 0 ? V{} : y) : y;
    };
    if (!gated_as_one<A, kOp>(o, c)) {
      store_plane<N>(out.at, size, [&](int64_t i) { return finish(p.z(load(u.at + i)) * p.gate(load(u.at + i)), i); });
    } else {
      const A gate = row_of<A>(o.coefficients, o, kGate)[c];
      store_plane<N>(out.at, size, [&](int64_t i) { return finish(p.z(load(u.at + i)) * gate, i); });
    }
  });
}

// The gradient that ReLU lets through, by the output or, without attention and shortcut, by u.
template <class T, class A, Op kOp, class V = Vec<A>>
SIMD_INLINE V passed(
    const Plane<A, A, kOp>& p, const Operands& o, const T* grad, const T* activated, int64_t i, V u) {
  const V g = load(grad + i);
  if (!attends(kOp) && o.relu) return p.z(u) <= 0 ? V{} : g;
  if (!activated) return g;
  return load(activated + i) <= 0 ? V{} : g;
}

// Where du keeps the first part of itself, unrounded, for the next pass; null if that must compute it again.
template <class T, Op kOp, class A = Accumulator<T>>
SIMD_INLINE A* part_of(const Operands& o, const Span& span, int64_t c, T* du) {
  if constexpr (kKeepsPart<T, kOp>) return du;
  const int64_t half = o.map.channels / 2, size = o.map.plane, W = Lanes<A>::count;
  const int64_t plane = c < half ? c - span.first : c - half - span.first + span.count;
  return o.part ? static_cast<A*>(o.part) + plane * (size > W ? size : W) : nullptr;
}

template <class T, Op kOp>
void gradient_sums_nchw(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = o.map.plane;
  for_planes<A, parts_of(kOp)>(o, span, [&](auto n, int64_t c, int64_t source, int64_t target) {
    constexpr int N = n.value;
    if (!normalises(kOp) && gated_as_one<A, kOp>(o, c)) return;  // statistics_nchw has taken its sum
    const Readable<N, T> u(o.u, source, size), grad(o.grad, target, size);
    const Readable<N, T> activated(normalises(kOp) ? o.activated : nullptr, target, size);
    const Writable<N, T> dshortcut(normalises(kOp) ? o.dshortcut : nullptr, target, size);
    const auto p = plane_of<A, kOp>(o, c);
    const auto take = [&](int64_t i, V x) {
      const V g = passed<T>(p, o, grad.at, activated.at, i, x);
      if (dshortcut.at) store(dshortcut.at + i, g);
      return g;
    };
    A sums[kSums<kOp>];
    if constexpr (!attends(kOp)) {
      sum_over_plane<N>(size, sums, [&](int64_t i, V* s) {
        const V x = load(u.at + i), g = take(i, x);
        s[0] = g;
        s[1] = g * (x - p.pivot);
      });
    } else if (!gated_as_one<A, kOp>(o, c)) {
      const Writable<N, T> du(kKeepsPart<T, kOp> ? o.du : nullptr, source, size);
      A* const part = part_of<T, kOp>(o, span, c, du.at);
      sum_over_plane<N>(size, sums, [&](int64_t i, V* s) {
        const V x = load(u.at + i), d = x - p.pivot;
        V q;
        const V own = p.own_gradient(take(i, x), x, p.gate(x), q, s[kH]);
        if (part) store(part + i, own);
        s[kHd] = s[kH] * d;
        if constexpr (normalises(kOp)) {
          s[kQ] = q;
          s[kQd] = q * d;
        }
      });
    } else {
      // Of g in the place of q, and of g z in that of h: the gate is one factor, for finish_sums.
      A of_g[3];
      sum_over_plane<N>(size, of_g, [&](int64_t i, V* s) {
        const V x = load(u.at + i), g = take(i, x);
        s[0] = g * p.z(x);
        s[1] = g;
        s[2] = g * (x - p.pivot);
      });
      sums[kH] = of_g[0];
      sums[kHd] = 0;
      if constexpr (normalises(kOp)) {
        sums[kQ] = of_g[1];
        sums[kQd] = of_g[2];
      }
    }
    for (int r = 0; r < kSums<kOp>; ++r) raw_sums_of<A, kOp>(o, kFirstSum<kOp> + r)[c] = sums[r];
  });
}

template <class T, Op kOp>
void gradient_nchw(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = o.map.plane;
  // The gradient that ReLU lets through has been written already.
  const void* const grads = o.dshortcut ? o.dshortcut : o.grad;
  const void* const mask = normalises(kOp) && !o.dshortcut ? o.activated : nullptr;
  for_planes<A, parts_of(kOp)>(o, span, [&](auto n, int64_t c, int64_t source, int64_t target) {
    constexpr int N = n.value;
    const Readable<N, T> u(o.u, source, size);
    const Writable<N, T> du(o.du, source, size);
    const auto p = plane_of<A, kOp>(o, c);
    const bool spatial = !gated_as_one<A, kOp>(o, c);
    const A* const part = part_of<T, kOp>(o, span, c, du.at);
    if (part && spatial) {
      store_plane<N>(du.at, size, [&](int64_t i) { return load(part + i) + p.through_statistics(load(u.at + i)); });
      return;
    }
    const Readable<N, T> grad(grads, target, size), activated(mask, target, size);
    if (spatial) {
      store_plane<N>(du.at, size, [&](int64_t i) {
        const V x = load(u.at + i);
        V q, h;
        return p.own_gradient(passed<T>(p, o, grad.at, activated.at, i, x), x, p.gate(x), q, h) + p.through_statistics(x);
      });
    } else if constexpr (normalises(kOp)) {
      const A scale = p.scale * row_of<A>(o.coefficients, o, kGate)[c];
      store_plane<N>(du.at, size, [&](int64_t i) {
        const V x = load(u.at + i);
        return scale * passed<T>(p, o, grad.at, activated.at, i, x) + p.through_statistics(x);
      });
    } else {
      const A gate = row_of<A>(o.coefficients, o, kGate)[c];
      store_plane<N>(du.at, size, [&](int64_t i) { return gate * load(grad.at + i) + p.by_mean; });
    }
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
