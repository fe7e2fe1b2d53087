// The end of a residual block on (batch, channels, plane) in memory; N is that of planes.h.
#pragma once

#include "planes.h"
#include "tail_gates.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// A plane to be read, copied to where a whole vector may be read if it is smaller than one.
template <int N, class T>
struct Readable {
  Padded<T> padded;
  const T* at;
  SIMD_INLINE Readable(const void* map, int64_t offset, int64_t size) : at(static_cast<const T*>(map)) {
    if (!at) return;
    at += offset;
    if constexpr (N == 1) {
      if (size == Padded<T>::W) return;
      padded = Padded<T>(at, size);
      at = padded.at;
    }
  }
};

// A plane to be written.
template <int N, class T>
struct Writable {
  Padded<T> padded;
  T *at, *target;
  int64_t size;
  SIMD_INLINE Writable(void* map, int64_t offset, int64_t size)
      : at(static_cast<T*>(map)), target(nullptr), size(size) {
    if (!at) return;
    at += offset;
    if constexpr (N == 1) {
      if (size == Padded<T>::W) return;
      target = at;
      padded = Padded<T>(target, size);
      at = padded.at;
    }
  }
  SIMD_INLINE ~Writable() {
    if (N == 1 && target) padded.copy_to(target, size);
  }
};

// Calls run(channel, source, target) with the offsets of a plane before and after the shuffle.
template <class Run>
SIMD_INLINE void for_planes(const Map& map, const Span& span, const Run& run) {
  const int64_t half = map.channels / 2, first = span.image * map.channels;
  for (int64_t k = span.first; k < span.first + span.count; ++k) {
    for (int h = 0; h < 2; ++h) {
      const int64_t c = k + h * half;
      run(c, (first + c) * map.plane, (first + (map.shuffle ? 2 * k + h : c)) * map.plane);
    }
  }
}

template <class T, int N = kMostVectors<Accumulator<T>>>
void statistics_planes(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  const int64_t size = t.map.plane;
  if constexpr (N > 0) {
    if ((size + Lanes<A>::count - 1) / Lanes<A>::count != N) return statistics_planes<T, N - 1>(t, span);
  }
  A* const row = row_of<A>(t.statistics, t, span.image, kStatistics, 0);
  for_planes(t.map, span, [&](int64_t c, int64_t source, int64_t) {
    const Readable<N, T> u(t.u, source, size);
    const PlaneMoments<A> moments = moments_of<N>(u.at, size);
    row[kPivot * t.map.channels + c] = moments.pivot;
    row[kRest * t.map.channels + c] = moments.offset;
    row[kVariance * t.map.channels + c] = moments.variance;
  });
}

// The numbers of one plane.
template <class A>
struct PlaneNumbers {
  A pivot, scale, shift, slope, exponent_scale, exponent, gate, inverse_gain, by_mean, by_distance;
  bool spatial;

  SIMD_INLINE PlaneNumbers(const Tail& t, int64_t image, int64_t c) {
    const auto& channels = *static_cast<const Channels<A>*>(t.channels);
    const auto coefficient = [&](Coefficient r) { return coefficients_of<A>(t, r)[c]; };
    pivot = row_of<A>(t.statistics, t, image, kStatistics, kPivot)[c];
    scale = channels.scale[c];
    shift = coefficient(kShift);
    slope = coefficient(kSlope);
    exponent_scale = slope * A(kToExponent);
    exponent = coefficient(kExponent);
    gate = coefficient(kGate);
    inverse_gain = channels.gates.inverse_gain;
    by_mean = coefficient(kByMean);
    by_distance = coefficient(kByDistance);
    spatial = channels.gates.spatial[c] != 0;
  }
};

template <class T, int N = kMostVectors<Accumulator<T>>>
void output_planes(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = t.map.plane;
  if constexpr (N > 0) {
    if ((size + Lanes<A>::count - 1) / Lanes<A>::count != N) return output_planes<T, N - 1>(t, span);
  }
  for_planes(t.map, span, [&](int64_t c, int64_t source, int64_t target) {
    const Readable<N, T> u(t.u, source, size), shortcut(t.shortcut, target, size);
    const Writable<N, T> out(t.out, target, size);
    const PlaneNumbers<A> p(t, span.image, c);
    const auto finish = [&](V y, int64_t i) {
      if (shortcut.at) y += load(shortcut.at + i);
      return t.relu ? (y < 0 ? V{} : y) : y;
    };
    if (p.spatial) {
      store_plane<N>(out.at, size, [&](int64_t i, int) {
        const V d = load(u.at + i) - p.pivot;
        return finish(gated(d * p.scale + p.shift, d * p.exponent_scale + p.exponent, p.inverse_gain), i);
      });
    } else {
      const A scale = p.scale * p.gate, shift = p.shift * p.gate;
      store_plane<N>(out.at, size, [&](int64_t i, int) {
        return finish((load(u.at + i) - p.pivot) * scale + shift, i);
      });
    }
  });
}

// The gradient that ReLU lets through.
template <class T>
SIMD_INLINE Vec<Accumulator<T>> passed(const T* grad, const T* activated, int64_t i) {
  using V = Vec<Accumulator<T>>;
  const V g = load(grad + i);
  if (!activated) return g;
  return load(activated + i) <= 0 ? V{} : g;
}

// a q + S h at one position of the spatial branch.
template <class A, class V = Vec<A>>
SIMD_INLINE V own_gradient_of(const PlaneNumbers<A>& p, V g, V d, V& q, V& h) {
  const V z = d * p.scale + p.shift, t = d * p.exponent_scale + p.exponent;
  return own_gradient(g, z, t, p.scale, p.slope, p.inverse_gain, q, h);
}

template <class T, int N = kMostVectors<Accumulator<T>>>
void gradient_sums_planes(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = t.map.plane;
  if constexpr (N > 0) {
    if ((size + Lanes<A>::count - 1) / Lanes<A>::count != N) return gradient_sums_planes<T, N - 1>(t, span);
  }
  A* const row = row_of<A>(t.raw_sums, t, 0, kRawSums, 0);
  for_planes(t.map, span, [&](int64_t c, int64_t source, int64_t target) {
    const Readable<N, T> u(t.u, source, size), grad(t.grad, target, size), activated(t.activated, target, size);
    const Writable<N, T> dshortcut(t.dshortcut, target, size);
    const PlaneNumbers<A> p(t, span.image, c);
    const auto take = [&](int64_t i) {
      const V g = passed(grad.at, activated.at, i);
      if (dshortcut.at) store(dshortcut.at + i, g);
      return g;
    };
    A sums[kRawSums] = {};
    if (p.spatial) {
      const Writable<N, T> du(kKeepsPart<T> ? t.du : nullptr, source, size);
      sum_over_plane<N>(size, sums, [&](int64_t i, V* s, int) {
        const V d = load(u.at + i) - p.pivot;
        const V own = own_gradient_of<A>(p, take(i), d, s[kQ], s[kH]);
        if constexpr (kKeepsPart<T>) store(du.at + i, own);
        s[kQd] = s[kQ] * d;
        s[kHd] = s[kH] * d;
      });
    } else {
      A of_g[2];
      sum_over_plane<N>(size, of_g, [&](int64_t i, V* s, int) {
        s[0] = take(i);
        s[1] = s[0] * (load(u.at + i) - p.pivot);
      });
      sums[kQ] = p.gate * of_g[0];
      sums[kQd] = p.gate * of_g[1];
      sums[kH] = (1 - p.gate * p.inverse_gain) * (p.scale * sums[kQd] + p.shift * sums[kQ]);
    }
    for (int r = 0; r < kRawSums; ++r) row[r * t.map.channels + c] = sums[r];
  });
}

template <class T, int N = kMostVectors<Accumulator<T>>>
void gradient_planes(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const int64_t size = t.map.plane;
  if constexpr (N > 0) {
    if ((size + Lanes<A>::count - 1) / Lanes<A>::count != N) return gradient_planes<T, N - 1>(t, span);
  }
  // The gradient that ReLU lets through has been written already.
  const void* const grads = t.dshortcut ? t.dshortcut : t.grad;
  const void* const mask = t.dshortcut ? nullptr : t.activated;
  for_planes(t.map, span, [&](int64_t c, int64_t source, int64_t target) {
    const Readable<N, T> u(t.u, source, size);
    const Writable<N, T> du(t.du, source, size);
    const PlaneNumbers<A> p(t, span.image, c);
    const auto rest = [&](V d) { return p.by_mean + p.by_distance * d; };
    if (kKeepsPart<T> && p.spatial) {
      store_plane<N>(du.at, size, [&](int64_t i, int) {
        return load(du.at + i) + rest(load(u.at + i) - p.pivot);
      });
      return;
    }
    const Readable<N, T> grad(grads, target, size), activated(mask, target, size);
    if (p.spatial) {
      store_plane<N>(du.at, size, [&](int64_t i, int) {
        const V d = load(u.at + i) - p.pivot;
        V q, h;
        return own_gradient_of<A>(p, passed(grad.at, activated.at, i), d, q, h) + rest(d);
      });
    } else {
      const A scale = p.scale * p.gate;
      store_plane<N>(du.at, size, [&](int64_t i, int) {
        return scale * passed(grad.at, activated.at, i) + rest(load(u.at + i) - p.pivot);
      });
    }
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
