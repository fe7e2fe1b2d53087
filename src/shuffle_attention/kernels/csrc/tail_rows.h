// The end of a residual block on (batch, plane, channels) in memory (channels_last): lanes are channels.
//
// A span is gone through in the order of memory, kRowPixels pixels at a time; of these a tile of a
// vector of each half of the channels is worked on with its numbers in registers.
#pragma once

#include "tail_gates.h"
#include "tiles.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// Pixels, spread evenly, whose mean is the pivot of a plane: near enough to its own mean wherever they
// are typical of it, and where they are not, the variance is large.
constexpr int64_t kPivotSamples = 32;

// Pixels that a tile works on at a time: their sums stay in registers, their rows in the nearer caches.
constexpr int64_t kRowPixels = 8;

template <class T, class Run>
SIMD_INLINE void for_tiles(const Tail& t, const Span& span, int64_t pixels, const Run& run) {
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  const int64_t end = span.first + span.count;
  for (int64_t from = 0; from < pixels; from += kRowPixels) {
    const int64_t to = pixels - from < kRowPixels ? pixels : from + kRowPixels;
    int64_t first = span.first;
    for (; end - first >= W; first += W) {
      run(Tile<T, 1, true>{t.map.channels, t.map.plane, first, W, t.map.shuffle}, from, to);
    }
    if (first < end) run(Tile<T, 1, false>{t.map.channels, t.map.plane, first, end - first, t.map.shuffle}, from, to);
  }
}

// A map at one image, which the tiles read and write before or after the shuffle.
template <class T>
struct Image {
  T* at;
  SIMD_INLINE Image(T* map, const Tail& t, const Span& span)
      : at(map ? map + span.image * t.map.channels * t.map.plane : map) {}

  // Asks for what the tile needs kRowPixels later: no prefetcher follows so many rows.
  template <class Tile>
  SIMD_INLINE void ahead(const Tile& tile, int64_t pixel, int64_t channel) const {
    if (at) __builtin_prefetch(at + (pixel + kRowPixels) * tile.channels + channel, 0, 2);
  }
};

// Whether what is written is to be asked for as well: not where an image is small enough for the nearer
// caches to have what was there before.
template <class T>
SIMD_INLINE bool writes_are_cold(const Map& map) {
  return map.channels * map.plane * static_cast<int64_t>(sizeof(T)) > (1 << 20);
}

// The two vectors that a tile's columns become after the shuffle.
template <class Tile>
struct Places {
  using V = typename Tile::V;
  int64_t channel[2], lanes[2];
  bool shuffle;
  SIMD_INLINE explicit Places(const Tile& t)
      : channel{t.shuffle ? 2 * t.first : t.channel_of(0), t.shuffle ? 2 * t.first + t.W : t.channel_of(1)},
        lanes{t.shuffle ? 2 * t.lanes : t.lanes, t.shuffle ? 2 * t.lanes - t.W : t.lanes},
        shuffle(t.shuffle) {}
  template <class T>
  SIMD_INLINE V load(const Tile& tile, const T* map, int64_t pixel, int k) const {
    return Tile::load_lanes(map + pixel * tile.channels + channel[k], lanes[k]);
  }
  template <class T>
  SIMD_INLINE void store(const Tile& tile, T* map, int64_t pixel, int k, V v) const {
    Tile::store_lanes(map + pixel * tile.channels + channel[k], v, lanes[k]);
  }
};

// The numbers of a tile's planes, as vectors.
template <class Tile, class A>
struct TileNumbers {
  using V = Vec<A>;
  V pivot[2], scale[2], shift[2], slope[2], exponent_scale[2], exponent[2];
  A inverse_gain;
  SIMD_INLINE TileNumbers(const Tail& t, const Span& span, const Tile& tile) {
    const auto& channels = *static_cast<const Channels<A>*>(t.channels);
    inverse_gain = channels.gates.inverse_gain;
    for (int c = 0; c < 2; ++c) {
      const auto row = [&](Coefficient r) { return tile.of_channels(coefficients_of<A>(t, r), c); };
      pivot[c] = tile.of_channels(row_of<A>(t.statistics, t, span.image, kStatistics, kPivot), c);
      scale[c] = tile.of_channels(channels.scale, c);
      shift[c] = row(kShift);
      slope[c] = row(kSlope);
      exponent_scale[c] = slope[c] * A(kToExponent);
      exponent[c] = row(kExponent);
    }
  }
};

template <class T>
void statistics_rows(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const Image<const T> u(static_cast<const T*>(t.u), t, span);
  A* const pivots = row_of<A>(t.statistics, t, span.image, kStatistics, kPivot);
  A *const rests = pivots + kRest * t.map.channels, *const variances = pivots + kVariance * t.map.channels;
  const int64_t plane = t.map.plane, samples = plane < kPivotSamples ? plane : kPivotSamples;
  for_tiles<T>(t, span, 1, [&](const auto& tile, int64_t, int64_t) {
    for (int c = 0; c < 2; ++c) {
      V sum{};
      for (int64_t i = 0; i < samples; ++i) sum += tile.source(u.at, i * plane / samples, c);
      tile.store_of_channels(pivots, c, sum * (A(1) / samples));
      tile.store_of_channels(rests, c, V{});
      tile.store_of_channels(variances, c, V{});
    }
  });
  for_tiles<T>(t, span, plane, [&](const auto& tile, int64_t from, int64_t to) {
    const V pivot[2] = {tile.of_channels(pivots, 0), tile.of_channels(pivots, 1)};
    V sum[2] = {}, squares[2] = {};
    for (int64_t i = from; i < to; ++i) {
      for (int c = 0; c < 2; ++c) {
        u.ahead(tile, i, tile.channel_of(c));
        const V d = tile.source(u.at, i, c) - pivot[c];
        sum[c] += d;
        squares[c] += d * d;
      }
    }
    for (int c = 0; c < 2; ++c) {
      tile.store_of_channels(rests, c, tile.of_channels(rests, c) + sum[c]);
      tile.store_of_channels(variances, c, tile.of_channels(variances, c) + squares[c]);
    }
  });
  for_tiles<T>(t, span, 1, [&](const auto& tile, int64_t, int64_t) {
    for (int c = 0; c < 2; ++c) {
      V rest, variance;
      find_moments(tile.of_channels(rests, c), tile.of_channels(variances, c), A(1) / plane, rest, variance);
      tile.store_of_channels(rests, c, rest);
      tile.store_of_channels(variances, c, variance);
    }
  });
}

template <class T>
void output_rows(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const Image<const T> u(static_cast<const T*>(t.u), t, span);
  const Image<const T> shortcut(static_cast<const T*>(t.shortcut), t, span);
  const Image<T> out(static_cast<T*>(t.out), t, span);
  const bool cold = writes_are_cold<T>(t.map);
  for_tiles<T>(t, span, t.map.plane, [&](const auto& tile, int64_t from, int64_t to) {
    const TileNumbers<std::decay_t<decltype(tile)>, A> n(t, span, tile);
    const Places<std::decay_t<decltype(tile)>> places(tile);
    for (int64_t i = from; i < to; ++i) {
      V y[2], placed[2];
      for (int c = 0; c < 2; ++c) {
        u.ahead(tile, i, tile.channel_of(c));
        shortcut.ahead(tile, i, places.channel[c]);
        if (cold) out.ahead(tile, i, places.channel[c]);
        const V d = tile.source(u.at, i, c) - n.pivot[c];
        const V t = d * n.exponent_scale[c] + n.exponent[c];
        placed[c] = y[c] = gated(d * n.scale[c] + n.shift[c], t, n.inverse_gain);
      }
      if (places.shuffle) interleave<A>(y[0], y[1], placed[0], placed[1]);
      for (int k = 0; k < 2; ++k) {
        if (shortcut.at) placed[k] += places.load(tile, shortcut.at, i, k);
        if (t.relu) placed[k] = placed[k] < 0 ? V{} : placed[k];
        places.store(tile, out.at, i, k, placed[k]);
      }
    }
  });
}

// The gradient that ReLU lets through, as it stands before the shuffle; also written to `dshortcut`.
template <class A, class T, class Tile, class V = Vec<A>>
SIMD_INLINE void load_passed(
    const Tile& tile, const Places<Tile>& places, const T* grad, const T* activated, T* dshortcut, int64_t i,
    V (&g)[2]) {
  V placed[2];
  for (int k = 0; k < 2; ++k) {
    placed[k] = places.load(tile, grad, i, k);
    if (activated) placed[k] = places.load(tile, activated, i, k) <= 0 ? V{} : placed[k];
    if (dshortcut) places.store(tile, dshortcut, i, k, placed[k]);
    g[k] = placed[k];
  }
  if (places.shuffle) deinterleave<A>(placed[0], placed[1], g[0], g[1]);
}

// a q + S h at one pixel of a column.
template <class Numbers, class V>
SIMD_INLINE V own_gradient_of(const Numbers& n, int c, V g, V d, V& q, V& h) {
  const V z = d * n.scale[c] + n.shift[c], t = d * n.exponent_scale[c] + n.exponent[c];
  return own_gradient(g, z, t, n.scale[c], n.slope[c], n.inverse_gain, q, h);
}

template <class T>
void gradient_sums_rows(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const Image<const T> u(static_cast<const T*>(t.u), t, span), grad(static_cast<const T*>(t.grad), t, span);
  const Image<const T> activated(static_cast<const T*>(t.activated), t, span);
  const Image<T> dshortcut(static_cast<T*>(t.dshortcut), t, span), du(static_cast<T*>(t.du), t, span);
  const bool cold = writes_are_cold<T>(t.map);
  A* const sums = row_of<A>(t.raw_sums, t, 0, kRawSums, 0);
  for_tiles<T>(t, span, t.map.plane, [&](const auto& tile, int64_t from, int64_t to) {
    const TileNumbers<std::decay_t<decltype(tile)>, A> n(t, span, tile);
    const Places<std::decay_t<decltype(tile)>> places(tile);
    V total[kRawSums][2] = {};
    for (int64_t i = from; i < to; ++i) {
      V g[2];
      for (int c = 0; c < 2; ++c) {
        u.ahead(tile, i, tile.channel_of(c));
        grad.ahead(tile, i, places.channel[c]);
        activated.ahead(tile, i, places.channel[c]);
        if (cold) dshortcut.ahead(tile, i, places.channel[c]);
        if (cold && kKeepsPart<T>) du.ahead(tile, i, tile.channel_of(c));
      }
      load_passed<A>(tile, places, grad.at, activated.at, dshortcut.at, i, g);
      for (int c = 0; c < 2; ++c) {
        const V d = tile.source(u.at, i, c) - n.pivot[c];
        V q, h;
        const V own = own_gradient_of(n, c, g[c], d, q, h);
        if constexpr (kKeepsPart<T>) tile.store_source(du.at, i, c, own);
        total[kQ][c] += q;
        total[kQd][c] += q * d;
        total[kH][c] += h;
        total[kHd][c] += h * d;
      }
    }
    for (int r = 0; r < kRawSums; ++r) {
      A* const row = sums + r * t.map.channels;
      for (int c = 0; c < 2; ++c) {
        tile.store_of_channels(row, c, from == 0 ? total[r][c] : tile.of_channels(row, c) + total[r][c]);
      }
    }
  });
}

template <class T>
void gradient_rows(const Tail& t, const Span& span) {
  using A = Accumulator<T>;
  using V = Vec<A>;
  const Image<const T> u(static_cast<const T*>(t.u), t, span);
  const Image<T> du(static_cast<T*>(t.du), t, span);
  // The gradient that ReLU lets through has been written already.
  const Image<const T> grad(static_cast<const T*>(t.dshortcut ? t.dshortcut : t.grad), t, span);
  const Image<const T> activated(static_cast<const T*>(t.dshortcut ? nullptr : t.activated), t, span);
  for_tiles<T>(t, span, t.map.plane, [&](const auto& tile, int64_t from, int64_t to) {
    const TileNumbers<std::decay_t<decltype(tile)>, A> n(t, span, tile);
    const Places<std::decay_t<decltype(tile)>> places(tile);
    V by_mean[2], by_distance[2];
    for (int c = 0; c < 2; ++c) {
      by_mean[c] = tile.of_channels(coefficients_of<A>(t, kByMean), c);
      by_distance[c] = tile.of_channels(coefficients_of<A>(t, kByDistance), c);
    }
    for (int64_t i = from; i < to; ++i) {
      V g[2], q, h;
      if constexpr (!kKeepsPart<T>) {
        load_passed<A>(tile, places, grad.at, activated.at, static_cast<T*>(nullptr), i, g);
      }
      for (int c = 0; c < 2; ++c) {
        u.ahead(tile, i, tile.channel_of(c));
        const V d = tile.source(u.at, i, c) - n.pivot[c];
        V own;
        if constexpr (kKeepsPart<T>) {
          du.ahead(tile, i, tile.channel_of(c));
          own = tile.source(du.at, i, c);
        } else {
          own = own_gradient_of(n, c, g[c], d, q, h);
        }
        tile.store_source(du.at, i, c, own + (by_mean[c] + by_distance[c] * d));
      }
    }
  });
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
