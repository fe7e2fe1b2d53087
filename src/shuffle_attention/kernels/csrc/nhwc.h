// The passes over maps in NHWC (channels_last), (batch, plane, channels) in memory: lanes are channels.
//
// A span is gone through in the order of memory, kRowPixels pixels at a time; of these a tile of U vectors of each half
// of the channels (of all of them without attention) is worked on with its coefficients in registers. After the shuffle its channels are neighbours.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Pixels, spread evenly, whose mean is the pivot of a plane: near enough to its own mean wherever they
// are typical of it, and where they are not, the variance is large.
constexpr int64_t kPivotSamples = 32;
// Pixels that a tile works on at a time: their sums stay in registers, their rows in the nearer caches.
template <Op kOp>
constexpr int64_t kRowPixels = kOp == kTail ? 8 : 16;

template <Op kOp>
constexpr int kTileVectors = kOp == kTail ? 1 : 2;

enum Side { kBefore, kAfter };  // the shuffle

// U vectors of channels from `first` on in each part; `lanes` of a vector are in use, all of them if Full.
template <class T, Op kOp, int U, bool Full>
struct Tile {
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr int64_t W = Lanes<A>::count;
  static constexpr int K = parts_of(kOp) * U;  // vectors
  static constexpr bool kFull = Full;

  bool shuffle;
  int64_t row, channel[2][K], lanes[2][K];  // [Side]

  SIMD_INLINE Tile(const Map& map, int64_t first, int64_t count) : shuffle(map.shuffle), row(map.channels) {
    const int64_t more = 2 * count > W ? 2 * count - W : 0;  // than a vector, after the shuffle
    for (int k = 0; k < K; ++k) {
      channel[kBefore][k] = k / U * (map.channels / parts_of(kOp)) + first + k % U * W;
      channel[kAfter][k] = shuffle ? 2 * first + k * W : channel[kBefore][k];
      lanes[kBefore][k] = count;
      lanes[kAfter][k] = !shuffle ? count : k ? more : 2 * count - more;
    }
  }

  // From and to an image, or a row of values per channel.
  template <class M>
  SIMD_INLINE V load(const M* image, int64_t pixel, Side side, int k) const {
    const M* const at = image + pixel * row + channel[side][k];
    if constexpr (Full) return Memory<M>::load(at);
    M padded[W];
    load_first<M>(padded, at, lanes[side][k]);
    return Memory<M>::load(padded);
  }

  template <class M>
  SIMD_INLINE void store(M* image, int64_t pixel, Side side, int k, V v) const {
    M* const at = image + pixel * row + channel[side][k];
    if constexpr (Full) return Memory<M>::store(at, v);
    M padded[W];
    Memory<M>::store(padded, v);
    store_first<M>(at, padded, lanes[side][k]);
  }

  // Adds to a row of values per channel; the first sum is stored.
  SIMD_INLINE void add(A* values, bool first, int k, V v) const {
    store(values, 0, kBefore, k, first ? v : load(values, 0, kBefore, k) + v);
  }

  // Asks for what is needed kRowPixels later: no prefetcher follows so many rows.
  SIMD_INLINE void ahead(const T* image, int64_t pixel, Side side) const {
    for (int k = 0; k < K; ++k) {
      __builtin_prefetch(image + (pixel + kRowPixels<kOp>) * row + channel[side][k], 0, 2);
    }
  }

  SIMD_INLINE void shuffled(V (&v)[K]) const {
    if constexpr (!attends(kOp)) return;
    if (!shuffle) return;
    V after[2 * U];
    for (int u = 0; u < U; ++u) interleave<A>(v[u], v[U + u], after[2 * u], after[2 * u + 1]);
    for (int k = 0; k < K; ++k) v[k] = after[k];
  }

  SIMD_INLINE void unshuffled(V (&v)[K]) const {
    if constexpr (!attends(kOp)) return;
    if (!shuffle) return;
    V before[2 * U];
    for (int u = 0; u < U; ++u) deinterleave<A>(v[2 * u], v[2 * u + 1], before[u], before[U + u]);
    for (int k = 0; k < K; ++k) v[k] = before[k];
  }
};

// Calls run(tile, from, to) on all pixels of the span, `rows` at a time. A narrow tile has one vector of each part.
template <class T, Op kOp, class Run>
SIMD_INLINE void for_tiles(
    const Operands& o, const Span& span, int64_t pixels, const Run& run, int64_t rows = kRowPixels<kOp>,
    bool narrow = false) {
  constexpr int U = kTileVectors<kOp>;
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  const int64_t end = span.first + span.count;
  for (int64_t from = 0, to; from < pixels; from = to) {
    to = pixels - from < 2 * rows ? pixels : from + rows;
    int64_t first = span.first;
    if constexpr (U > 1) {
      for (; !narrow && end - first >= U * W; first += U * W) run(Tile<T, kOp, U, true>(o.map, first, W), from, to);
    }
    for (; end - first >= W; first += W) run(Tile<T, kOp, 1, true>(o.map, first, W), from, to);
    if (first < end) run(Tile<T, kOp, 1, false>(o.map, first, end - first), from, to);
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

// The lanes of a tile whose gates need an exponential per pixel, since half of the channels have one gate per plane: those
// of the vectors in the second half of the channels (kSecond), or half of each vector. Then two vectors share the
// exponential: the second borrows lanes of the first.
enum GateLanes { kNone, kSecond, kHalf, kAll };

template <class Tile, Op kOp, GateLanes kLanes>
struct TilePlanes {
  using A = typename Tile::A;
  using V = Vec<A>;
  static constexpr int K = Tile::K;
  Plane<A, V, kOp> at[K];
  V of_plane[K], spatial[K];
  Bits<A> from;

  SIMD_INLINE TilePlanes(const Operands& o, const Tile& tile) {
    const Gates<A>& gates = channels_of<A>(o).gates;
    for (int k = 0; k < K; ++k) {
      const auto row = [&](const A* values) { return tile.load(values, 0, kBefore, k); };
      at[k].read(o, row);
      if (attends(kOp) && kLanes != kAll) of_plane[k] = row(row_of<A>(o.coefficients, o, kGate));
      if (kLanes == kHalf) spatial[k] = row(gates.spatial);
    }
    if (kLanes == kHalf) from = lane_numbers<A>(LaneIndices<A>{}) ^ static_cast<int>(gates.n);
  }

  // The gates of vector k, after those of the vectors before it; u(k) loads its values, `shared` is kept between calls.
  template <class Load>
  SIMD_INLINE V gates(int k, const Load& u, V (&shared)[K]) const {
    if constexpr (kLanes == kHalf) {
      if (const int j = k + K / 2; j < K) {
        const V second = exchanged(at[j].exponent_of(u(j)), from);
        shared[k] = gate_of(spatial[k] != 0 ? at[k].exponent_of(u(k)) : second, at[k].inverse_gain);
        shared[j] = exchanged(shared[k], from);
      }
      return spatial[k] != 0 ? shared[k] : of_plane[k];
    } else {
      const bool per_plane = kLanes == kNone || (kLanes == kSecond && k < K / 2);
      return attends(kOp) && per_plane ? of_plane[k] : at[k].gate(u(k));
    }
  }
};

// Calls run(planes) with the planes of the tile. kShares is for a pass that waits for arithmetic and not for memory.
template <Op kOp, bool kShares, class Tile, class Run>
SIMD_INLINE void with_planes(const Operands& o, const Tile& tile, const Run& run) {
  if constexpr (!attends(kOp)) return run(TilePlanes<Tile, kOp, kNone>(o, tile));
  const auto& gates = channels_of<typename Tile::A>(o).gates;
  if (Tile::kFull && o.map.channels % (4 * gates.n) == 0) {  // both halves of the channels alternate alike
    const bool spatial = gates.spatial[tile.channel[kBefore][0]] != 0;
    if (gates.n % (Tile::K / 2 * Tile::W) == 0 && !spatial) return run(TilePlanes<Tile, kOp, kNone>(o, tile));
    if constexpr (kExchanges && kShares) {
      if (Tile::W % (2 * gates.n) == 0) return run(TilePlanes<Tile, kOp, kHalf>(o, tile));
    }
  }
  if (2 * gates.n == o.map.channels) return run(TilePlanes<Tile, kOp, kSecond>(o, tile));
  run(TilePlanes<Tile, kOp, kAll>(o, tile));
}

template <class T, Op kOp>
void statistics_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  A *const pivots = row_of<A>(o.statistics, o, kPivot), *const rests = row_of<A>(o.statistics, o, kRest),
           *const variances = row_of<A>(o.statistics, o, kVariance);
  const int64_t size = o.map.plane, samples = size < kPivotSamples ? size : kPivotSamples,
                step = size / samples;
  for_tiles<T, kOp>(o, span, 1, [&](const auto& tile, int64_t, int64_t) SIMD_ALWAYS {
    for (int k = 0; k < tile.K; ++k) {
      V sum{};
      for (int64_t i = 0; i < samples; ++i) sum += tile.load(u, i * step, kBefore, k);
      tile.store(pivots, 0, kBefore, k, finite_pivot(sum * (A(1) / samples)));
    }
  });
  for_tiles<T, kOp>(o, span, size, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
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
  for_tiles<T, kOp>(o, span, 1, [&](const auto& tile, int64_t, int64_t) SIMD_ALWAYS {
    for (int k = 0; k < tile.K; ++k) {
      V rest, variance;
      const V sum = tile.load(rests, 0, kBefore, k), squares = tile.load(variances, 0, kBefore, k);
      find_moments(sum, squares, A(1) / size, rest, variance);
      tile.store(rests, 0, kBefore, k, rest);
      tile.store(variances, 0, kBefore, k, variance);
    }
  });
}

template <class T, Op kOp>
void output_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  const T* const shortcut = normalises(kOp) ? image_of<T>(o.shortcut, o, span) : nullptr;
  T* const out = image_of<T>(o.out, o, span);
  const bool far = !o.cached, cold = writes_are_cold<T>(o.map), relu = normalises(kOp) && o.relu;
  const auto run = [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    with_planes<kOp, true>(o, tile, [&](const auto& planes) SIMD_ALWAYS {
      for (int64_t i = from; i < to; ++i) {
        V y[K], shared[K];
        const auto x = [&](int k) { return tile.load(u, i, kBefore, k); };
        if (far) tile.ahead(u, i, kBefore);
        if (shortcut) tile.ahead(shortcut, i, kAfter);
        if (cold) tile.ahead(out, i, kAfter);
        for (int k = 0; k < K; ++k) y[k] = planes.at[k].z(x(k)) * planes.gates(k, x, shared);
        tile.shuffled(y);
        for (int k = 0; k < K; ++k) {
          if (shortcut) y[k] += tile.load(shortcut, i, kAfter, k);
          if (relu) y[k] = y[k] < 0 ? V{} : y[k];
          tile.store(out, i, kAfter, k, y[k]);
        }
      }
    });
  };
  // Tiles of one branch wherever vectors are.
  constexpr int64_t W = Lanes<A>::count;
  const int64_t n = channels_of<A>(o).gates.n;  // 0 without attention
  for_tiles<T, kOp>(o, span, o.map.plane, run, kRowPixels<kOp>, n % W == 0 && n % (kTileVectors<kOp> * W) != 0);
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

template <class T, Op kOp>
void gradient_sums_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T *const u = image_of<T>(o.u, o, span), *const grad = image_of<T>(o.grad, o, span);
  const T* const activated = normalises(kOp) ? image_of<T>(o.activated, o, span) : nullptr;
  T *const dshortcut = normalises(kOp) ? image_of<T>(o.dshortcut, o, span) : nullptr, *const du = image_of<T>(o.du, o, span);
  const bool far = !o.cached, cold = writes_are_cold<T>(o.map);
  for_tiles<T, kOp>(o, span, o.map.plane, [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K, kFirst = kFirstSum<kOp>;
    V total[kSums<kOp>][K] = {};
    with_planes<kOp, false>(o, tile, [&](const auto& planes) SIMD_ALWAYS {
      for (int64_t i = from; i < to; ++i) {
        V g[K], shared[K];
        const auto values = [&](int k) { return tile.load(u, i, kBefore, k); };
        if (far) tile.ahead(u, i, kBefore);
        tile.ahead(grad, i, kAfter);
        if (activated) tile.ahead(activated, i, kAfter);
        if (cold && dshortcut) tile.ahead(dshortcut, i, kAfter);
        if (cold && kKeepsPart<T, kOp>) tile.ahead(du, i, kBefore);
        load_passed(tile, grad, activated, dshortcut, i, g);
        for (int k = 0; k < K; ++k) {
          const V x = values(k), d = x - planes.at[k].pivot;
          if (!attends(kOp) && o.relu) g[k] = planes.at[k].z(x) <= 0 ? V{} : g[k];
          V q, h;
          const V own = planes.at[k].own_gradient(g[k], x, planes.gates(k, values, shared), q, h);
          if constexpr (kKeepsPart<T, kOp>) tile.store(du, i, kBefore, k, own);
          if constexpr (normalises(kOp)) {
            total[kQ - kFirst][k] += q;
            total[kQd - kFirst][k] += q * d;
          }
          if constexpr (attends(kOp)) {
            total[kH][k] += h;
            total[kHd][k] += h * d;
          }
        }
      }
    });
    for (int r = 0; r < kSums<kOp>; ++r) {
      for (int k = 0; k < K; ++k) tile.add(raw_sums_of<A, kOp>(o, kFirst + r), from == 0, k, total[r][k]);
    }
  });
}

template <class T, Op kOp>
void gradient_nhwc(const Operands& o, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const T* const u = image_of<T>(o.u, o, span);
  T* const du = image_of<T>(o.du, o, span);
  // The gradient that ReLU lets through has been written already.
  const T* const grad = image_of<T>(o.dshortcut ? o.dshortcut : o.grad, o, span);
  const T* const activated = normalises(kOp) && !o.dshortcut ? image_of<T>(o.activated, o, span) : nullptr;
  const bool far = !o.cached;
  // Few rows where little is computed: those of u and du often compete for the same lines of the cache.
  const bool few = kKeepsPart<T, kOp> && 2 * span.count == o.map.channels;
  const auto run = [&](const auto& tile, int64_t from, int64_t to) SIMD_ALWAYS {
    constexpr int K = std::decay_t<decltype(tile)>::K;
    const auto finish = [&](const auto& planes) SIMD_ALWAYS {
      for (int64_t i = from; i < to; ++i) {
        V g[K], shared[K], q, h;
        const auto values = [&](int k) { return tile.load(u, i, kBefore, k); };
        if constexpr (!kKeepsPart<T, kOp>) load_passed(tile, grad, activated, static_cast<T*>(nullptr), i, g);
        if (far) tile.ahead(u, i, kBefore);
        if (far && kKeepsPart<T, kOp>) tile.ahead(du, i, kBefore);
        for (int k = 0; k < K; ++k) {
          const V x = values(k);
          V own;
          if (!attends(kOp) && o.relu) g[k] = planes.at[k].z(x) <= 0 ? V{} : g[k];
          if constexpr (kKeepsPart<T, kOp>) {
            own = tile.load(du, i, kBefore, k);
          } else {
            own = planes.at[k].own_gradient(g[k], x, planes.gates(k, values, shared), q, h);
          }
          tile.store(du, i, kBefore, k, own + planes.at[k].through_statistics(x));
        }
      }
    };
    if constexpr (kKeepsPart<T, kOp>) finish(TilePlanes<std::decay_t<decltype(tile)>, kOp, kAll>(o, tile));
    else with_planes<kOp, false>(o, tile, finish);
  };
  for_tiles<T, kOp>(o, span, o.map.plane, run, kRowPixels<kOp> / (few ? 4 : 1));
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
