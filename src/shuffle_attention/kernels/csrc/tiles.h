// The kernels of rows.h on the units of a map.
//
// A unit of one tile makes all its passes while the tile is in cache. An image too large for that is
// one unit with all of its tiles, and every pass goes through the image from end to end in the order
// of memory, kSumPixels at a time. Which of the two it is changes no number.
#pragma once

#include "rows.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

constexpr int kTileVectors = 2;
// Pixels that are worked on in the order of memory have at the most this many tiles.
constexpr int64_t kMostTiles = 16;

template <class T>
constexpr int64_t row_width() {
  return kTileVectors * Lanes<Accumulator<T>>::count;
}

template <class T>
struct Pass {
  const T *x, *dy;  // of the image; null where there is none
  T* out;
  Accumulator<T>* sums;
};

// Makes the passes over `count` tiles; ahead(map, target, tile, from) is what to ask for meanwhile.
template <bool Backward, class T, class Tile, class AheadOf>
SIMD_INLINE void make_passes(
    const Tile* tiles, int64_t count, const Pass<T>& p, const Gates<Accumulator<T>>& gates, const AheadOf& ahead) {
  using A = Accumulator<T>;
  typename Tile::State states[kMostTiles];
  const int64_t pixels = tiles[0].pixels, pivot_pixels = pixels < kPivotPixels ? pixels : kPivotPixels;
  const auto each = [&](int64_t end, const auto& pass) {
    for (int64_t from = 0; from < end; from += kSumPixels) {
      const int64_t to = end - from < kSumPixels ? end : from + kSumPixels;
      for (int64_t t = 0; t < count; ++t) pass(tiles[t], states[t], t, from, to);
    }
  };
  each(pivot_pixels, [&](const Tile& tile, auto& s, int64_t, int64_t from, int64_t to) {
    tile.add_to_pivot(p.x, from, to, s);
  });
  for (int64_t t = 0; t < count; ++t) {
    for (auto& pivot : states[t].pivot) pivot *= A(1) / pivot_pixels;
  }
  each(pixels, [&](const Tile& tile, auto& s, int64_t t, int64_t from, int64_t to) {
    tile.add_to_moments(p.x, from, to, s, ahead(p.x, false, t, from, false));
  });
  for (int64_t t = 0; t < count; ++t) tiles[t].find_gates(gates, states[t]);
  if constexpr (!Backward) {
    each(pixels, [&](const Tile& tile, auto& s, int64_t t, int64_t from, int64_t to) {
      tile.write_output(p.x, p.out, from, to, s, ahead(p.x, false, t, from, true));
    });
    return;
  }
  each(pixels, [&](const Tile& tile, auto& s, int64_t t, int64_t from, int64_t to) {
    tile.add_to_gradients(
        p.x, p.dy, p.out, from, to, s, ahead(p.x, false, t, from, true), ahead(p.dy, true, t, from, true));
  });
  for (int64_t t = 0; t < count; ++t) tiles[t].finish_sums(p.sums, gates, states[t]);
  each(pixels, [&](const Tile& tile, auto& s, int64_t t, int64_t from, int64_t to) {
    const T* const second = Tile::kStash ? p.out : p.dy;
    tile.write_gradient(
        p.x, p.dy, p.out, from, to, s, ahead(p.x, false, t, from, false), ahead(second, true, t, from, false));
  });
}

template <bool Backward, class T>
SIMD_INLINE void run_rows(const Map& map, const void* gates, Pass<T> p, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  using Whole = Tile<T, kTileVectors, true>;
  constexpr int64_t W = Lanes<A>::count, width = row_width<T>();
  const auto& g = *static_cast<const Gates<A>*>(gates);
  const int64_t half = map.channels / 2, size = map.plane * map.channels;
  const int64_t tiles = (half + width - 1) / width;
  const auto of_image = [&](int64_t image) {
    const auto at = [&](auto* map_of) { return map_of ? map_of + image * size : map_of; };
    return Pass<T>{at(p.x), at(p.dy), at(p.out), p.sums ? p.sums + 2 * image * map.channels : nullptr};
  };
  const auto nothing = [](const T*, bool, int64_t, int64_t, bool) { return Ahead<T>{}; };
  if (map.whole_rows) {
    Whole row[kMostTiles];
    for (int64_t t = 0; t < tiles; ++t) row[t] = {map.channels, map.plane, t * width, W, map.shuffle};
    for (int64_t image = begin; image < end; ++image) {
      // The tiles share out the pixels that come next, whole rows one after the other.
      const auto ahead = [&](const T* of, bool, int64_t t, int64_t from, bool) {
        const int64_t next = from + kSumPixels, run = 2 * width;
        const T* const at = of + next * map.channels + (t * kSumPixels - from) * run;
        return next < map.plane ? Ahead<T>{at, at + width, run} : Ahead<T>{};
      };
      make_passes<Backward>(row, tiles, of_image(image), g, ahead);
    }
    return;
  }
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / tiles, stop = half;
    int64_t first = unit % tiles * width;
    const Pass<T> here = of_image(image);
    if (stop - first >= width) {
      // The tile of the next unit, in this image or at the start of the next one; none after the last.
      const bool turns = unit % tiles + 1 == tiles;
      const int64_t next = turns ? 0 : first + width, other = turns ? size : 0;
      const auto ahead = [&](const T* of, bool target, int64_t, int64_t, bool gates_are_computed) {
        if (!gates_are_computed || unit + 1 == end) return Ahead<T>{};
        const bool together = target && map.shuffle;
        const T* const at = of + other + (together ? 2 * next : next);
        return Ahead<T>{at, at + (together ? width : half), map.channels};
      };
      const Whole tile{map.channels, map.plane, first, W, map.shuffle};
      make_passes<Backward>(&tile, 1, here, g, ahead);
      continue;
    }
    for (; stop - first >= W; first += W) {
      const Tile<T, 1, true> tile{map.channels, map.plane, first, W, map.shuffle};
      make_passes<Backward>(&tile, 1, here, g, nothing);
    }
    if (first < stop) {
      const Tile<T, 1, false> tile{map.channels, map.plane, first, stop - first, map.shuffle};
      make_passes<Backward>(&tile, 1, here, g, nothing);
    }
  }
}

template <class T>
void forward_rows(const Map& map, const void* gates, const void* x, void* y, int64_t begin, int64_t end) {
  run_rows<false>(
      map, gates, Pass<T>{static_cast<const T*>(x), nullptr, static_cast<T*>(y), nullptr}, begin, end);
}

template <class T>
void backward_rows(
    const Map& map, const void* gates, const void* x, const void* dy, void* dx, void* sums, int64_t begin, int64_t end) {
  run_rows<true>(
      map, gates,
      Pass<T>{
          static_cast<const T*>(x), static_cast<const T*>(dy), static_cast<T*>(dx),
          static_cast<Accumulator<T>*>(sums)},
      begin, end);
}

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
