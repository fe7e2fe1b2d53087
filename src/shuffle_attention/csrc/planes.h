// The layer on (batch, channels, plane) in memory: a plane at a time, in cache after its first read.
//
// A unit is two planes, channel k of each half of the map, whose outputs lie side by side.

// Elements that a pivot is taken from; a plane up to this size is standardised by two exact passes,
// a larger one by its sums of (x - pivot) and (x - pivot)^2, which lose no digits that matter.
constexpr int64_t kPivotElements = 1 << 16;
// Lanes add up this many elements before they are summed, so that long sums keep their digits.
constexpr int64_t kSumElements = 1 << 14;

// Sets total[r] to the sum over i < size of the lanes that term(i, t) puts into t[r].
// term(i) reads elements i to i + W; a plane smaller than W must be readable to W.
template <class A, int R, class Term>
SIMD_INLINE void sum_over_plane(int64_t size, A (&total)[R], const Term& term) {
  constexpr int64_t W = Lanes<A>::count;
  for (int r = 0; r < R; ++r) total[r] = 0;
  for (int64_t from = 0; from < size; from += kSumElements) {
    const int64_t to = size - from < kSumElements ? size : from + kSumElements;
    Vec<A> sums[4][R] = {}, t[R];
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
      // The rest is read as the last lanes of the plane; those already added are masked out.
      const bool whole = size >= W;
      const int rest = to - i, low = whole ? W - rest : 0, high = whole ? W : rest;
      term(whole ? to - W : 0, t);
      for (int r = 0; r < R; ++r) {
        const Vec<A> above = lane_numbers<A>() >= low ? t[r] : Vec<A>{};
        sums[1][r] += lane_numbers<A>() < high ? above : Vec<A>{};
      }
    }
    for (int r = 0; r < R; ++r) {
      total[r] += sum_of_lanes<A>((sums[0][r] + sums[1][r]) + (sums[2][r] + sums[3][r]));
    }
  }
}

// Stores value(i) for every i. The ragged end is computed before anything is stored, because its
// lanes overlap those of the vector before, which value may read from the output.
template <class T, class Value>
SIMD_INLINE void store_plane(T* out, int64_t size, const Value& value) {
  constexpr int64_t W = Lanes<Accumulator<T>>::count;
  if (size < W) return store(out, value(0));
  const bool ragged = size % W != 0;
  Vec<Accumulator<T>> last{};
  if (ragged) last = value(size - W);
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    const Vec<Accumulator<T>> first = value(i), second = value(i + W);
    store(out + i, first);
    store(out + i + W, second);
  }
  if (i + W <= size) store(out + i, value(i));
  if (ragged) store(out + size - W, last);
}

template <class A>
struct PlaneStatistics {
  A pivot, offset, rstd;  // the mean is pivot + offset
  A mean() const { return pivot + offset; }
};

template <class T>
SIMD_INLINE Accumulator<T> mean_of(const T* x, int64_t size) {
  Accumulator<T> sum[1];
  sum_over_plane(size, sum, [&](int64_t i, Vec<Accumulator<T>>* t) { t[0] = load(x + i); });
  return sum[0] / size;
}

template <class T, class A = Accumulator<T>>
SIMD_INLINE PlaneStatistics<A> statistics_of(const T* x, int64_t size, A eps) {
  const A pivot = mean_of(x, size < kPivotElements ? size : kPivotElements);
  A sums[2];
  sum_over_plane(size, sums, [&](int64_t i, Vec<A>* t) {
    const Vec<A> d = load(x + i) - pivot;
    t[0] = d;
    t[1] = d * d;
  });
  const A offset = sums[0] / size;
  const A variance = sums[1] / size - offset * offset;
  return {pivot, offset, 1 / square_root<A>(splat((variance < 0 ? 0 : variance) + eps))[0]};
}

template <class T, class A = Accumulator<T>>
SIMD_INLINE void forward_plane(const T* x, T* y, int64_t size, int64_t c, const Gates<A>& gates) {
  if (gates.spatial[c] != 0) {
    const PlaneStatistics<A> s = statistics_of(x, size, gates.eps);
    const A scale = gates.alpha[c] * s.rstd, shift = gates.beta[c] - scale * s.offset;
    store_plane(y, size, [&](int64_t i) {
      const Vec<A> v = load(x + i);
      return v * sigmoid((v - s.pivot) * scale + shift);
    });
  } else {
    const A gate = sigmoid(splat(gates.slope[c] * mean_of(x, size) + gates.beta[c]))[0];
    store_plane(y, size, [&](int64_t i) { return load(x + i) * gate; });
  }
}

// `stash` holds a plane in the accumulator's type; for maps of that type it is dx itself.
template <class T, class A = Accumulator<T>>
SIMD_INLINE void backward_plane(
    const T* x, const T* dy, T* dx, A* stash, int64_t size, int64_t c, const Gates<A>& gates, A& sum, A& weighted) {
  if (gates.spatial[c] != 0) {
    const PlaneStatistics<A> s = statistics_of(x, size, gates.eps);
    const A scale = gates.alpha[c] * s.rstd, shift = gates.beta[c] - scale * s.offset;
    const auto direct = [&](int64_t i, Vec<A>& h, Vec<A>& d) {
      const Vec<A> v = load(x + i);
      d = v - s.pivot;
      const Vec<A> gate = sigmoid(d * scale + shift), through = gate * load(dy + i);
      h = (1 - gate) * through * v;
      return through + scale * h;
    };
    A sums[2];
    sum_over_plane(size, sums, [&](int64_t i, Vec<A>* t) {
      Vec<A> h, d;
      store(stash + i, direct(i, h, d));
      t[0] = h;
      t[1] = h * d;
    });
    sum = sums[0];
    weighted = s.rstd * (sums[1] - s.offset * sums[0]);
    const A by_distance = -scale * s.rstd * weighted / size;
    const A by_mean = -scale * sum / size - by_distance * s.offset;
    store_plane(dx, size, [&](int64_t i) { return load(stash + i) + (by_mean + by_distance * (load(x + i) - s.pivot)); });
  } else {
    A sums[2];
    sum_over_plane(size, sums, [&](int64_t i, Vec<A>* t) {
      t[0] = load(x + i);
      t[1] = t[0] * load(dy + i);
    });
    const A mean = sums[0] / size;
    const A gate = sigmoid(splat(gates.slope[c] * mean + gates.beta[c]))[0];
    sum = gate * (1 - gate) * sums[1];
    weighted = sum * mean;
    const A by_mean = gates.slope[c] * sum / size;
    store_plane(dx, size, [&](int64_t i) { return load(dy + i) * gate + by_mean; });
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

struct UnitOfPlanes {
  int64_t image, source[2], target[2], channel[2];  // offsets of the planes, in elements
};

SIMD_INLINE UnitOfPlanes unit_of_planes(const Map& map, int64_t unit) {
  const int64_t half = map.channels / 2, image = unit / half, k = unit % half;
  UnitOfPlanes u;
  u.image = image;
  for (int h = 0; h < 2; ++h) {
    u.channel[h] = k + h * half;
    u.source[h] = (image * map.channels + u.channel[h]) * map.plane;
    u.target[h] = (image * map.channels + (map.shuffle ? 2 * k + h : u.channel[h])) * map.plane;
  }
  return u;
}

template <class T>
void forward_planes(const Map& map, const void* gates, const void* x, void* y, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const auto& g = *static_cast<const Gates<A>*>(gates);
  const T* from = static_cast<const T*>(x);
  T* to = static_cast<T*>(y);
  for (int64_t unit = begin; unit < end; ++unit) {
    const UnitOfPlanes u = unit_of_planes(map, unit);
    for (int h = 0; h < 2; ++h) {
      if (map.plane >= Lanes<A>::count) {
        forward_plane(from + u.source[h], to + u.target[h], map.plane, u.channel[h], g);
      } else {
        const Padded<T> in(from + u.source[h], map.plane);
        Padded<T> out;
        forward_plane(in.at, out.at, map.plane, u.channel[h], g);
        out.copy_to(to + u.target[h], map.plane);
      }
    }
  }
}

template <class T>
void backward_planes(
    const Map& map, const void* gates, const void* x, const void* dy, void* dx, void* sums, int64_t begin, int64_t end) {
  using A = Accumulator<T>;
  const auto& g = *static_cast<const Gates<A>*>(gates);
  const T *map_in = static_cast<const T*>(x), *grad = static_cast<const T*>(dy);
  T* out = static_cast<T*>(dx);
  constexpr bool own_stash = sizeof(T) != sizeof(A);
  A* const scratch = own_stash ? new A[map.plane + Lanes<A>::count] : nullptr;
  for (int64_t unit = begin; unit < end; ++unit) {
    const UnitOfPlanes u = unit_of_planes(map, unit);
    for (int h = 0; h < 2; ++h) {
      A* const sum = static_cast<A*>(sums) + 2 * u.image * map.channels + u.channel[h];
      A& weighted = sum[map.channels];
      const auto stash_for = [&](T* target) { return own_stash ? scratch : reinterpret_cast<A*>(target); };
      if (map.plane >= Lanes<A>::count) {
        T* const target = out + u.source[h];
        backward_plane(
            map_in + u.source[h], grad + u.target[h], target, stash_for(target), map.plane, u.channel[h], g, *sum,
            weighted);
      } else {
        const Padded<T> in(map_in + u.source[h], map.plane), grad_in(grad + u.target[h], map.plane);
        Padded<T> target;
        backward_plane(
            in.at, grad_in.at, target.at, stash_for(target.at), map.plane, u.channel[h], g, *sum, weighted);
        target.copy_to(out + u.source[h], map.plane);
      }
    }
  }
  delete[] scratch;
}
