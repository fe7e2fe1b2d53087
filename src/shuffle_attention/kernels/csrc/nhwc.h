// The passes over maps in NHWC (channels_last), (batch, plane, channels) in memory: lanes are channels.
//
// A span is gone through in the order of memory, kRowPixels pixels at a time; of these a tile of U vectors of each half
// of the channels is worked on with its coefficients in registers. After the shuffle its channels are neighbours.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Pixels, spread evenly, whose mean is the pivot of a plane: near enough to its own mean wherever they
// are typical of it, and where they are not, the variance is large.
constexpr int64_t kPivotSamples = 32;
// Pixels that a tile works on at a time: their sums stay in registers, their rows in the nearer caches.
template <bool kTail>
constexpr int64_t kRowPixels = kTail ? 8 : 16;

template <bool kTail>
constexpr int kTileVectors = kTail ? 1 : 2;

enum Side { kBefore, kAfter };  // the shuffle

// U vectors of channels from `first` on in each half; `lanes` of a vector are in use, all of them if Full.
template <class T, bool kTail, int U, bool Full>
struct Tile {
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr int64_t W = Lanes<A>::count;
  static constexpr int K = 2 * U;  // vectors

  bool shuffle;
  int64_t row, channel[2][K], lanes[2][K];  // [Side]

  SIMD_INLINE Tile(const Map& map, int64_t first, int64_t count) : shuffle(map.shuffle), row(map.channels) {
    for (int k = 0; k < K; ++k) {
      channel[kBefore][k] = k / U * (map.channels / 2) + first + k % U * W;
      channel[kAfter][k] = shuffle ? 2 * first + k * W : channel[kBefore][k];
      lanes[kBefore][k] = count;
      lanes[kAfter][k] = shuffle ? 2 * count - k * W : count;
    }
  }

  // From and to an image, or a row of values per channel.
  template <class M>
  SIMD_INLINE V load(const M* image, int64_t pixel, Side side, int k) const {
    const M* const at = image + pixel * row + channel[side][k];
    if constexpr (Full) return Memory<M>::load(at);
    M padded[W] = {};
    for (int64_t i = 0; i < W; ++i) {
      if (i < lanes[side][k]) padded[i] = at[i];
    }
    return Memory<M>::load(padded);
  }

  template <class M>
  SIMD_INLINE void store(M* image, int64_t pixel, Side side, int k, V v) const {
    M* const at = image + pixel * row + channel[side][k];
    if constexpr (Full) return Memory<M>::store(at, v);
    M padded[W];
    Memory<M>::store(padded, v);
    for (int64_t i = 0; i < W; ++i) {
      if (i < lanes[side][k]) at[i] = padded[i];
    }
  }

  // Adds to a row of values per channel; the first sum is stored.
  SIMD_INLINE void add(A* values, bool first, int k, V v) const {
    store(values, 0, kBefore, k, first ? v : load(values, 0, kBefore, k) + v);
  }

  // Asks for what is needed kRowPixels later: no prefetcher follows so many rows.
  SIMD_INLINE void ahead(const T* image, int64_t pixel, Side side) const {
    for (int k = 0; k < K; ++k) {
      __builtin_prefetch(image + (pixel + kRowPixels<kTail>) * row + channel[side][k], 0, 2);
    }
  }

  SIMD_INLINE void shuffled(V (&v)[K]) const {
    if (!shuffle) return;
    V after[K];
    for (int u = 0; u < U; ++u) interleave<A>(v[u], v[U + u], after[2 * u], after[2 * u + 1]);
    for (int k = 0; k < K; ++k) v[k] = after[k];
  }

  SIMD_INLINE void unshuffled(V (&v)[K]) const {
    if (!shuffle) return;
    V before[K];
    for (int u = 0; u < U; ++u) deinterleave<A>(v[2 * u], v[2 * u + 1], before[u], before[U + u]);
    for (int k = 0; k < K; ++k) v[k] = before[k];
  }
};

// Calls run(tile, from, to) on all pixels of the span.
template <class T, bool kTail, class Run>
SIMD_INLINE void for_tiles(const Operands& o, const Span& span, int64_t pixels, const Run& run) {
  constexpr int U = kTileVectors<kTail>;
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  const int64_t end = span.first + span.count;
  for (int64_t from = 0, to; from < pixels; from = to) {
    to = pixels - from < 2 * kRowPixels<kTail> ? pixels : from + kRowPixels<kTail>;
    int64_t first = span.first;
    if constexpr (U > 1) {
      for (; end - first >= U * W; first += U * W) run(Tile<T, kTail, U, true>(o.map, first, W), from, to);
    }
    for (; end - first >= W; first += W) run(Tile<T, kTail, 1, true>(o.map, first, W), from, to);
    if (first < end) run(Tile<T, kTail, 1, false>(o.map, first, end - first), from, to);
  }
}

// A map at the span's image, or null.
template <class T, class M>
SIMD_INLINE auto image_of(M* map, const Operands& o, const Span& span) {
  using Typed = std::conditional_t<std::is_const_v<M>, const T, T>;
  return map ? static_cast<Typed*>(map) + span.image * o.map.channels * o.map.plane : nullptr;
}

// Whether what is written is to be asked for as well: not where an image is small enough for the nearer
// caches to have what was there before.
template <class T>
SIMD_INLINE bool writes_are_cold(const Map& map) {
  return map.channels * map.plane * static_cast<int64_t>(sizeof(T)) > (1 << 20);
}

template <bool kTail, class Tile, class A = typename Tile::A>
SIMD_INLINE void read_planes(Plane<A, Vec<A>, kTail> (&planes)[Tile::K], const Operands& o, const Tile& tile) {
  for (int k = 0; k < Tile::K; ++k) {
    planes[k].read(o, [&](const A* row) { return tile.load(row, 0, kBefore, k); });
  }
}

template <class T, bool kTail>
void statistics_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  A *const pivots = row_of<A>(o.statistics, o, kPivot), *const rests = row_of<A>(o.statistics, o, kRest),
           *const variances = row_of<A>(o.statistics, o, kVariance);
  const int64_t size = o.map.plane, samples = size < kPivotSamples ? size : kPivotSamples,
                step = size / samples;
  for_tiles<T, kTail>(o, span, 1, [&](const auto& tile, int64_t, int64_t) SIMD_ALWAYS {
    for (int k = 0; k < tile.K; ++k) {
      V sum{};
      for (int64_t i = 0; i < samples; ++i) sum += tile.load(u, i * step, kBefore, k);
      tile.store(pivots, 0, kBefore, k, finite_pivot(sum * (A(1) / samples)));
    }
  });
  for_tiles<T, kTail>(o, span, size, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    V pivot[K], sum[K] = {}, squares[K] = {};
    for (int k = 0; k < K; ++k) pivot[k] = tile.load(pivots, 0, kBefore, k);
    for (int64_t i = from; i < to; ++i) {
      tile.ahead(u, i, kBefore);
      for (int k = 0; k < K; ++k) {
        const V d = tile.load(u, i, kBefore, k) - pivot[k];
        sum[k] += d;
        squares[k] += d * d;
      }
    }
    for (int k = 0; k < K; ++k) {
      tile.add(rests, from == 0, k, sum[k]);
      tile.add(variances, from == 0, k, squares[k]);
    }
  });
  for_tiles<T, kTail>(o, span, 1, [&](const auto& tile, int64_t, int64_t) SIMD_ALWAYS {
    for (int k = 0; k < tile.K; ++k) {
      V rest, variance;
      const V sum = tile.load(rests, 0, kBefore, k), squares = tile.load(variances, 0, kBefore, k);
      find_moments(sum, squares, A(1) / size, rest, variance);
      tile.store(rests, 0, kBefore, k, rest);
      tile.store(variances, 0, kBefore, k, variance);
    }
  });
}

template <class T, bool kTail>
void output_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  const T* const shortcut = kTail ? image_of<T>(o.shortcut, o, span) : nullptr;
  T* const out = image_of<T>(o.out, o, span);
  const bool far = !o.cached, cold = writes_are_cold<T>(o.map), relu = kTail && o.relu;
  for_tiles<T, kTail>(o, span, o.map.plane, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    Plane<A, V, kTail> planes[K];
    read_planes(planes, o, tile);
    for (int64_t i = from; i < to; ++i) {
      V y[K];
      if (far) tile.ahead(u, i, kBefore);
      if (shortcut) tile.ahead(shortcut, i, kAfter);
      if (cold) tile.ahead(out, i, kAfter);
      for (int k = 0; k < K; ++k) {
        y[k] = planes[k].attended(tile.load(u, i, kBefore, k));
      }
      tile.shuffled(y);
      for (int k = 0; k < K; ++k) {
        if (shortcut) y[k] += tile.load(shortcut, i, kAfter, k);
        if (relu) y[k] = y[k] < 0 ? V{} : y[k];
        tile.store(out, i, kAfter, k, y[k]);
      }
    }
  });
}

// The gradient that ReLU lets through, as it stands before the shuffle; also written to `dshortcut`.
template <class T, class Tile, class V = typename Tile::V>
SIMD_INLINE void load_passed(
    const Tile& tile, const T* grad, const T* activated, T* dshortcut, int64_t i, V (&g)[Tile::K]) {
  for (int k = 0; k < Tile::K; ++k) {
    g[k] = tile.load(grad, i, kAfter, k);
    if (activated) g[k] = tile.load(activated, i, kAfter, k) <= 0 ? V{} : g[k];
    if (dshortcut) tile.store(dshortcut, i, kAfter, k, g[k]);
  }
  tile.unshuffled(g);
}

template <class T, bool kTail>
void gradient_sums_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T *const u = image_of<T>(o.u, o, span), *const grad = image_of<T>(o.grad, o, span);
  const T* const activated = kTail ? image_of<T>(o.activated, o, span) : nullptr;
  T *const dshortcut = kTail ? image_of<T>(o.dshortcut, o, span) : nullptr, *const du = image_of<T>(o.du, o, span);
  const bool far = !o.cached, cold = writes_are_cold<T>(o.map);
  for_tiles<T, kTail>(o, span, o.map.plane, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    Plane<A, V, kTail> planes[K];
    read_planes(planes, o, tile);
    V total[kSums<kTail>][K] = {};
    for (int64_t i = from; i < to; ++i) {
      V g[K];
      if (far) tile.ahead(u, i, kBefore);
      tile.ahead(grad, i, kAfter);
      if (activated) tile.ahead(activated, i, kAfter);
      if (cold && dshortcut) tile.ahead(dshortcut, i, kAfter);
      if (cold && kKeepsPart<T>) tile.ahead(du, i, kBefore);
      load_passed(tile, grad, activated, dshortcut, i, g);
      for (int k = 0; k < K; ++k) {
        const V x = tile.load(u, i, kBefore, k), d = x - planes[k].pivot;
        V q, h;
        const V own = planes[k].own_gradient(g[k], x, q, h);
        if constexpr (kKeepsPart<T>) tile.store(du, i, kBefore, k, own);
        if constexpr (kTail) {
          total[kQ][k] += q;
          total[kQd][k] += q * d;
        }
        total[kH][k] += h;
        total[kHd][k] += h * d;
      }
    }
    for (int r = 0; r < kSums<kTail>; ++r) {
      for (int k = 0; k < K; ++k) tile.add(row_of<A>(o.raw_sums, o, r), from == 0, k, total[r][k]);
    }
  });
}

template <class T, bool kTail>
void gradient_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  T* const du = image_of<T>(o.du, o, span);
  // The gradient that ReLU lets through has been written already.
  const T* const grad = image_of<T>(o.dshortcut ? o.dshortcut : o.grad, o, span);
  const T* const activated = kTail && !o.dshortcut ? image_of<T>(o.activated, o, span) : nullptr;
  const bool far = !o.cached;
  for_tiles<T, kTail>(o, span, o.map.plane, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    Plane<A, V, kTail> planes[K];
    read_planes(planes, o, tile);
    for (int64_t i = from; i < to; ++i) {
      V g[K], q, h;
      if constexpr (!kKeepsPart<T>) load_passed(tile, grad, activated, static_cast<T*>(nullptr), i, g);
      if (far) tile.ahead(u, i, kBefore);
      if (far && kKeepsPart<T>) tile.ahead(du, i, kBefore);
      for (int k = 0; k < K; ++k) {
        const V x = tile.load(u, i, kBefore, k);
        V own;
        if constexpr (kKeepsPart<T>) {
          own = tile.load(du, i, kBefore, k);
        } else {
          own = planes[k].own_gradient(g[k], x, q, h);
        }
        tile.store(du, i, kBefore, k, own + planes[k].through_statistics(x));
      }
    }
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
