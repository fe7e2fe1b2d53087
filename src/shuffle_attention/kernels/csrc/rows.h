// The layer on (batch, plane, channels) in memory (channels_last): lanes are channels.
//
// The unit of work is a tile: neighbouring channels of each half of the map over one
// image. Their outputs interleave, so that every store is a whole vector.
#pragma once

#include "formulas.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

// The pivot of a channel is its mean over this many pixels at the most; what it is further off
// the mean of the image than that costs the variance a few bits, never its digits.
constexpr int64_t kPivotPixels = 512;
// Pixels that are added up before their sum is added to the total, so that long sums keep their
// digits, and that all tiles work on in turn where an image is too large for the cache: as many as
// the first cache holds.
constexpr int64_t kSumPixels = 16;

// Memory that the processor is asked for before its turn comes: two runs of elements for each pixel.
// No prefetcher of its own follows a tile from row to row, and while gates are computed the memory
// has nothing to do.
template <class T>
struct Ahead {
  const T *first, *second;  // null for nothing
  int64_t stride;
  template <int64_t count>
  SIMD_INLINE void fetch(int64_t pixel) const {
    if (!first) return;
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) {
      __builtin_prefetch(first + pixel * stride + i, 0, 2);
      __builtin_prefetch(second + pixel * stride + i, 0, 2);
    }
  }
};

// U vectors of channels of each half; `lanes` of a vector are in use, all of them if Full.
template <class T, int U, bool Full>
struct Tile {
  using A = Accumulator<T>;
  using V = Vec<A>;
  static constexpr int64_t W = Lanes<A>::count;
  static constexpr int kColumns = 2 * U;

  int64_t channels, pixels, first, lanes;
  bool shuffle;

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

  // State of a tile's channels between two passes.
  struct State {
    V pivot[kColumns] = {}, offset[kColumns], rstd[kColumns];  // the mean is pivot + offset
    V scale[kColumns];                                         // of x - pivot in the logit of the gate
    V exponent_scale[kColumns], exponent_shift[kColumns];
    A inverse_gain;
    V moments[2 * kColumns] = {};                // sums of x - pivot and its square, then of h and h (x - pivot)
    V by_mean[kColumns], by_distance[kColumns];  // what the statistics pass on to every pixel
  };

  // The passes, each over pixels from to to: at the most kSumPixels of them if it sums.

  SIMD_INLINE void add_to_pivot(const T* x, int64_t from, int64_t to, State& s) const {
    V sums[kColumns] = {};
    for (int64_t i = from; i < to; ++i) {
      for (int c = 0; c < kColumns; ++c) sums[c] += source(x, i, c);
    }
    for (int c = 0; c < kColumns; ++c) s.pivot[c] += sums[c];
  }

  SIMD_INLINE void add_to_moments(const T* x, int64_t from, int64_t to, State& s, const Ahead<T>& ahead) const {
    V sums[2 * kColumns] = {}, pivot[kColumns];
    for (int c = 0; c < kColumns; ++c) pivot[c] = s.pivot[c];
    for (int64_t i = from; i < to; ++i) {
      ahead.template fetch<U * W>(i);
      for (int c = 0; c < kColumns; ++c) {
        const V d = source(x, i, c) - pivot[c];
        sums[c] += d;
        sums[kColumns + c] += d * d;
      }
    }
    for (int c = 0; c < 2 * kColumns; ++c) s.moments[c] += sums[c];
  }

  SIMD_INLINE void find_gates(const Gates<A>& gates, State& s) const {
    const A each = A(1) / pixels;
    s.inverse_gain = gates.inverse_gain;
    for (int c = 0; c < kColumns; ++c) {
      V variance;
      find_moments(s.moments[c], s.moments[kColumns + c], each, s.offset[c], variance);
      s.rstd[c] = 1.0f / square_root(variance + gates.eps);
      s.scale[c] = of_channels(gates.alpha, c) * s.rstd[c];
      const V mean = s.pivot[c] + s.offset[c];
      const V shift = of_channels(gates.beta, c) + of_channels(gates.slope, c) * mean - s.scale[c] * s.offset[c];
      s.exponent_scale[c] = s.scale[c] * A(kToExponent);
      s.exponent_shift[c] = shift * A(kToExponent) - gates.log_gain;
      s.moments[c] = s.moments[kColumns + c] = V{};
    }
  }

  SIMD_INLINE void write_output(
      const T* x, T* y, int64_t from, int64_t to, const State& state, const Ahead<T>& ahead) const {
    const State s = state;
    for (int64_t i = from; i < to; ++i) {
      ahead.template fetch<U * W>(i);
      V out[kColumns];
      for (int c = 0; c < kColumns; ++c) {
        const V v = source(x, i, c);
        out[c] = gated(v, (v - s.pivot[c]) * s.exponent_scale[c] + s.exponent_shift[c], s.inverse_gain);
      }
      store_target(y, i, out);
    }
  }

  // Whether dx can hold the first part of itself unrounded, or has to be computed again.
  static constexpr bool kStash = sizeof(T) == sizeof(A);

  // The own gradient of one pixel; the sums over the plane are those of h and h d.
  static SIMD_INLINE V own_gradient_of(const State& s, V v, V grad, int c, V& h, V& d) {
    V q;
    d = v - s.pivot[c];
    const V t = d * s.exponent_scale[c] + s.exponent_shift[c], one = splat(A(1));
    return own_gradient(grad, v, t, one, s.scale[c], s.inverse_gain, q, h);
  }

  SIMD_INLINE void add_to_gradients(
      const T* x, const T* dy, T* dx, int64_t from, int64_t to, State& state, const Ahead<T>& ahead_x,
      const Ahead<T>& ahead_dy) const {
    const State s = state;
    V sums[2 * kColumns] = {}, h, d;
    for (int64_t i = from; i < to; ++i) {
      ahead_x.template fetch<U * W>(i);
      ahead_dy.template fetch<U * W>(i);
      V grad[kColumns];
      load_target(dy, i, grad);
      for (int c = 0; c < kColumns; ++c) {
        const V own = own_gradient_of(s, source(x, i, c), grad[c], c, h, d);
        if (kStash) store_source(dx, i, c, own);
        sums[c] += h;
        sums[kColumns + c] += h * d;
      }
    }
    for (int c = 0; c < 2 * kColumns; ++c) state.moments[c] += sums[c];
  }

  SIMD_INLINE void finish_sums(A* sums, const Gates<A>& gates, State& s) const {
    const A each = A(1) / pixels;
    for (int c = 0; c < kColumns; ++c) {
      const V sum = s.moments[c], standardised = s.rstd[c] * (s.moments[kColumns + c] - s.offset[c] * sum);
      const V mean = s.pivot[c] + s.offset[c];
      store_of_channels(sums, c, sum);
      store_of_channels(sums + channels, c, of_channels(gates.spatial, c) != 0 ? standardised : sum * mean);
      const V cweight = of_channels(gates.slope, c);
      through_statistics(sum, standardised, s.scale[c], s.rstd[c], cweight, each, s.by_mean[c], s.by_distance[c]);
      s.by_mean[c] -= s.by_distance[c] * s.offset[c];
    }
  }

  SIMD_INLINE void write_gradient(
      const T* x, const T* dy, T* dx, int64_t from, int64_t to, const State& state, const Ahead<T>& ahead_x,
      const Ahead<T>& ahead_second) const {
    const State s = state;
    V h, d;
    for (int64_t i = from; i < to; ++i) {
      ahead_x.template fetch<U * W>(i);
      ahead_second.template fetch<U * W>(i);
      V grad[kColumns];
      if (!kStash) load_target(dy, i, grad);
      for (int c = 0; c < kColumns; ++c) {
        const V v = source(x, i, c);
        const V own = kStash ? source(dx, i, c) : own_gradient_of(s, v, grad[c], c, h, d);
        store_source(dx, i, c, own + (s.by_mean[c] + s.by_distance[c] * (v - s.pivot[c])));
      }
    }
  }
};

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
