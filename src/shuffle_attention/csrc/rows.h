// The layer on (batch, plane, channels) in memory (channels_last): lanes are channels.
//
// A unit is a tile of neighbouring channels of each half of the map over one whole image. Their
// outputs interleave, so that every store is a whole vector.

// The pivot of a channel is its mean over this many pixels at the most; what it is further off
// the mean of the image than that costs the variance a few bits, never its digits.
constexpr int64_t kPivotPixels = 512;
// Pixels that are added up before their sum is added to the total, so that long sums keep their digits.
constexpr int64_t kSumPixels = 128;

// U vectors of channels of each half; `lanes` of a vector are in use, all of them if Full.
template <class T, int U, bool Full>
struct Tile {
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr int64_t W = Lanes<A>::count;
  static constexpr int kColumns = 2 * U;

  const int64_t channels, pixels, first, lanes;
  const bool shuffle;
  const int64_t next_source, next_target;  // from this tile to the next, in elements of a map

  static SIMD_INLINE V load_lanes(const T* p, int64_t count) {
    if constexpr (Full) return load(p);
    T padded[W] = {};
    for (int64_t i = 0; i < W; ++i) {
      if (i < count) padded[i] = p[i];
    }
    return load(padded);
  }

  static SIMD_INLINE void store_lanes(T* p, V v, int64_t count) {
    if constexpr (Full) return store(p, v);
    T padded[W];
    store(padded, v);
    for (int64_t i = 0; i < W; ++i) {
      if (i < count) p[i] = padded[i];
    }
  }

  SIMD_INLINE int64_t channel_of(int column) const { return column / U * (channels / 2) + first + column % U * W; }

  SIMD_INLINE V source(const T* map, int64_t pixel, int column) const {
    return load_lanes(map + pixel * channels + channel_of(column), lanes);
  }

  SIMD_INLINE void store_source(T* map, int64_t pixel, int column, V v) const {
    store_lanes(map + pixel * channels + channel_of(column), v, lanes);
  }

  // The columns as they stand in the output of the layer.
  SIMD_INLINE void store_target(T* map, int64_t pixel, const V (&v)[kColumns]) const {
    if (shuffle) {
      T* const at = map + pixel * channels + 2 * first;
      for (int u = 0; u < U; ++u) {
        V low, high;
        interleave<A>(v[u], v[U + u], low, high);
        store_lanes(at + 2 * u * W, low, 2 * lanes);
        store_lanes(at + (2 * u + 1) * W, high, 2 * lanes - W);
      }
    } else {
      for (int c = 0; c < kColumns; ++c) store_source(map, pixel, c, v[c]);
    }
  }

  SIMD_INLINE void load_target(const T* map, int64_t pixel, V (&v)[kColumns]) const {
    if (shuffle) {
      const T* const at = map + pixel * channels + 2 * first;
      for (int u = 0; u < U; ++u) {
        const V low = load_lanes(at + 2 * u * W, 2 * lanes);
        const V high = load_lanes(at + (2 * u + 1) * W, 2 * lanes - W);
        deinterleave<A>(low, high, v[u], v[U + u]);
      }
    } else {
      for (int c = 0; c < kColumns; ++c) v[c] = source(map, pixel, c);
    }
  }

  // Fetches a pixel of the next tile into the second cache. No prefetcher of the processor's own
  // follows a tile from row to row, and while gates are computed the memory has nothing to do.
  SIMD_INLINE void prefetch_source(const T* map, int64_t pixel) const {
    constexpr int64_t line = 64 / sizeof(T);
    const T* const at = map + pixel * channels + first + next_source;
    for (int64_t i = 0; i < U * W; i += line) {
      __builtin_prefetch(at + i, 0, 2);
      __builtin_prefetch(at + channels / 2 + i, 0, 2);
    }
  }

  SIMD_INLINE void prefetch_target(const T* map, int64_t pixel) const {
    if (!shuffle) return prefetch_source(map, pixel);
    constexpr int64_t line = 64 / sizeof(T);
    const T* const at = map + pixel * channels + 2 * first + next_target;
    for (int64_t i = 0; i < 2 * U * W; i += line) __builtin_prefetch(at + i, 0, 2);
  }

  SIMD_INLINE V of_channels(const A* values, int column) const {
    const A* const p = values + channel_of(column);
    if constexpr (Full) return load(p);
    A padded[W] = {};
    for (int64_t i = 0; i < lanes; ++i) padded[i] = p[i];
    return load(padded);
  }

  SIMD_INLINE void store_of_channels(A* values, int column, V v) const {
    A* const p = values + channel_of(column);
    if constexpr (Full) return store(p, v);
    for (int64_t i = 0; i < lanes; ++i) p[i] = v[i];
  }

  // term(pixel, sums) adds the terms of one pixel to the sums.
  template <int R, class Term>
  static SIMD_INLINE void sum_over_pixels(int64_t count, V (&total)[R], const Term& term) {
    for (int r = 0; r < R; ++r) total[r] = V{};
    for (int64_t from = 0; from < count; from += kSumPixels) {
      const int64_t to = count - from < kSumPixels ? count : from + kSumPixels;
      V sums[R] = {};
      for (int64_t i = from; i < to; ++i) term(i, sums);
      for (int r = 0; r < R; ++r) total[r] += sums[r];
    }
  }

  struct Statistics {
    V pivot[kColumns], offset[kColumns], rstd[kColumns];  // the mean is pivot + offset
    V scale[kColumns];                                    // of x - pivot in the logit of the gate
    V exponent_scale[kColumns], exponent_shift[kColumns];  // gate = gate_of(scale (x - pivot) + shift)
  };

  SIMD_INLINE void find_statistics(const T* x, const Gates<A>& gates, Statistics& s) const {
    const int64_t count = pixels < kPivotPixels ? pixels : kPivotPixels;
    const A each = A(1) / pixels;
    sum_over_pixels(count, s.pivot, [&](int64_t i, V* sums) {
      for (int c = 0; c < kColumns; ++c) sums[c] += source(x, i, c);
    });
    for (int c = 0; c < kColumns; ++c) s.pivot[c] *= A(1) / count;
    V moments[2 * kColumns];
    sum_over_pixels(pixels, moments, [&](int64_t i, V* sums) {
      for (int c = 0; c < kColumns; ++c) {
        const V d = source(x, i, c) - s.pivot[c];
        sums[c] += d;
        sums[kColumns + c] += d * d;
      }
    });
    for (int c = 0; c < kColumns; ++c) {
      s.offset[c] = moments[c] * each;
      const V variance = moments[kColumns + c] * each - s.offset[c] * s.offset[c];
      s.rstd[c] = 1.0f / square_root((variance < 0 ? V{} : variance) + gates.eps);
      s.scale[c] = of_channels(gates.alpha, c) * s.rstd[c];
      const V shift = of_channels(gates.beta, c) + of_channels(gates.slope, c) * (s.pivot[c] + s.offset[c]) -
          s.scale[c] * s.offset[c];
      s.exponent_scale[c] = s.scale[c] * A(kToExponent);
      s.exponent_shift[c] = shift * A(kToExponent);
    }
  }

  SIMD_INLINE void forward(const T* x, T* y, const Gates<A>& gates) const {
    Statistics s;
    find_statistics(x, gates, s);
    for (int64_t i = 0; i < pixels; ++i) {
      prefetch_source(x, i);
      V out[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        const V v = source(x, i, c);
        out[c] = v * gate_of((v - s.pivot[c]) * s.exponent_scale[c] + s.exponent_shift[c]);
      }
      store_target(y, i, out);
    }
  }

  SIMD_INLINE void backward(const T* x, const T* dy, T* dx, A* sums, const Gates<A>& gates) const {
    Statistics s;
    find_statistics(x, gates, s);
    // What one pixel's own gradient is; h and d are what the sums over the plane are made of.
    const auto direct = [&](V v, V grad, int c, V& h, V& d) {
      d = v - s.pivot[c];
      const V gate = gate_of(d * s.exponent_scale[c] + s.exponent_shift[c]), through = gate * grad;
      h = (1.0f - gate) * through * v;
      return through + s.scale[c] * h;
    };
    constexpr bool stash = sizeof(T) == sizeof(A);  // dx can hold the first part unrounded
    V moments[2 * kColumns], h, d;
    sum_over_pixels(pixels, moments, [&](int64_t i, V* m) {
      prefetch_source(x, i);
      prefetch_target(dy, i);
      V grad[kColumns];
      load_target(dy, i, grad);
      for (int c = 0; c < kColumns; ++c) {
        const V part = direct(source(x, i, c), grad[c], c, h, d);
        if (stash) store_source(dx, i, c, part);
        m[c] += h;
        m[kColumns + c] += h * d;
      }
    });
    V by_mean[kColumns], by_distance[kColumns];
    const A each = A(1) / pixels;
    for (int c = 0; c < kColumns; ++c) {
      const V sum = moments[c], standardised = s.rstd[c] * (moments[kColumns + c] - s.offset[c] * sum);
      const V mean = s.pivot[c] + s.offset[c];
      store_of_channels(sums, c, sum);
      store_of_channels(sums + channels, c, of_channels(gates.spatial, c) != 0 ? standardised : sum * mean);
      by_distance[c] = -s.scale[c] * s.rstd[c] * standardised * each;
      by_mean[c] = (of_channels(gates.slope, c) - s.scale[c]) * sum * each - by_distance[c] * s.offset[c];
    }
    for (int64_t i = 0; i < pixels; ++i) {
      V grad[kColumns];
      if (!stash) load_target(dy, i, grad);
      for (int c = 0; c < kColumns; ++c) {
        const V v = source(x, i, c);
        const V part = stash ? source(dx, i, c) : direct(v, grad[c], c, h, d);
        store_source(dx, i, c, part + (by_mean[c] + by_distance[c] * (v - s.pivot[c])));
      }
    }
  }
};

template <class T>
constexpr int kTileVectors = 2;

template <class T>
constexpr int64_t row_width() {
  return kTileVectors<T> * Lanes<Accumulator<T>>::count;
}

// Calls run(tile, image) for the tiles of units begin to end, whole ones first.
template <class T, class Run>
SIMD_INLINE void for_tiles(const Map& map, int64_t begin, int64_t end, const Run& run) {
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  const int64_t half = map.channels / 2, tiles = (half + row_width<T>() - 1) / row_width<T>();
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t image = unit / tiles, tile = unit % tiles, stop = half;
    int64_t first = tile * row_width<T>();
    // The next unit's tile; there is none after the last.
    const bool last = unit + 1 == end, turns = tile + 1 == tiles;
    const int64_t next = last ? 0 : turns ? map.plane * map.channels - first : row_width<T>();
    const int64_t next_target = last ? 0 : turns ? map.plane * map.channels - 2 * first : 2 * row_width<T>();
    if (stop - first >= row_width<T>()) {
      run(Tile<T, kTileVectors<T>, true>{map.channels, map.plane, first, W, map.shuffle, next, next_target}, image);
      continue;
    }
    for (; stop - first >= W; first += W) {
      run(Tile<T, 1, true>{map.channels, map.plane, first, W, map.shuffle, 0, 0}, image);
    }
    if (first < stop) run(Tile<T, 1, false>{map.channels, map.plane, first, stop - first, map.shuffle, 0, 0}, image);
  }
}

template <class T>
void forward_rows(const Map& map, const void* gates, const void* x, void* y, int64_t begin, int64_t end) {
  const auto& g = *static_cast<const Gates<Accumulator<T>>*>(gates);
  const int64_t size = map.plane * map.channels;
  for_tiles<T>(map, begin, end, [&](const auto& tile, int64_t image) {
    tile.forward(static_cast<const T*>(x) + image * size, static_cast<T*>(y) + image * size, g);
  });
}

template <class T>
void backward_rows(
    const Map& map, const void* gates, const void* x, const void* dy, void* dx, void* sums, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const auto& g = *static_cast<const Gates<A>*>(gates);
  const int64_t size = map.plane * map.channels;
  for_tiles<T>(map, begin, end, [&](const auto& tile, int64_t image) {
    tile.backward(
        static_cast<const T*>(x) + image * size, static_cast<const T*>(dy) + image * size,
        static_cast<T*>(dx) + image * size, static_cast<A*>(sums) + 2 * image * map.channels, g);
  });
}
