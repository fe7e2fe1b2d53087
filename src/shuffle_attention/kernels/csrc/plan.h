// How one call is worked on: in which layout and type, cut into which spans.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "parameters.h"

namespace shuffle_attention {

// Whether memory holds the dimensions in this order, without gaps; `order` runs from outer to inner.
inline bool stands_in_order(const Tensor& t, const std::array<int64_t, 5>& order) {
  int64_t expected = 1;
  for (int64_t i = t.dim() - 1; i >= 0; --i) {
    const int64_t size = t.size(order[i]);
    if (size != 1 && t.stride(order[i]) != expected) return false;
    expected *= size;
  }
  return true;
}

inline std::optional<Layout> layout_of(const Tensor& t) {
  // NHWC first: planes of one pixel are both, and only NHWC fills its vectors with them.
  std::array<int64_t, 5> nhwc{0, 2, 3, 4, 0};
  nhwc[t.dim() - 1] = 1;
  if (stands_in_order(t, nhwc)) return kNHWC;
  if (stands_in_order(t, {0, 1, 2, 3, 4})) return kNCHW;
  return std::nullopt;
}

inline std::optional<Type> kernel_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return kFloat;
    case ScalarType::Double: return kDouble;
    case ScalarType::BFloat16: return kBFloat16;
    case ScalarType::Half: return kHalf;
    default: return std::nullopt;
  }
}

inline bool same_memory(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != b.scalar_type()) return false;
  for (int64_t i = 0; i < a.dim(); ++i) {
    if (a.size(i) != 1 && a.stride(i) != b.stride(i)) return false;
  }
  return true;
}

// `t` itself where it has the layout and type of `like`, else a copy that has them.
inline Tensor arranged(const Tensor& t, const Tensor& like) {
  if (same_memory(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

inline void check_shape(const Tensor& t, const Tensor& u) {
  bool same = t.dim() == u.dim();
  for (int64_t i = 0; same && i < u.dim(); ++i) same = t.size(i) == u.size(i);
  STD_TORCH_CHECK(same, "shortcut, output and gradient must have the shape of the map");
}

struct Plan {
  Map map;
  Kernels kernels;
  Tensor like;  // a map as the kernels want it
  bool tail;    // or the layer
  bool fits_cache;  // whether a span does
  bool rounds;      // whether maps are in NCHW and of a smaller type than sums
  bool direct;  // whether `like` has the layout and type of u
  int64_t width, spans;

  Plan(const Tensor& u, const ParameterTensors& parameters, bool shuffle, bool tail)
      : like(torch::stable::empty_like(u)), tail(tail), direct(true) {
    STD_TORCH_CHECK(u.dim() >= 3 && u.dim() <= 5, "the map must have 3 to 5 dimensions, got ", u.dim());
    const int64_t n = parameters[0].numel(), channels = u.size(1), half = channels / 2;
    for (const Tensor& p : parameters) {
      STD_TORCH_CHECK(p.numel() == n, "the six parameters must all have the same number of values");
    }
    STD_TORCH_CHECK(
        n > 0 && channels > 0 && channels % (2 * n) == 0, "the map must have a multiple of 2 * n channels, got ",
        channels, " for n = ", n);
    int64_t plane = 1;
    for (int64_t i = 2; i < u.dim(); ++i) plane *= u.size(i);
    map = {u.size(0), channels, plane, shuffle};

    auto type = kernel_type(u.scalar_type());
    auto layout = layout_of(like);
    if (!type || !layout) {
      like = torch::stable::new_empty(u, u.sizes(), type ? u.scalar_type() : ScalarType::Float);
      type = type.value_or(kFloat);
      layout = kNCHW;
      direct = false;
    }
    kernels = (tail ? kernel_table().block_tail : kernel_table().layer).at[*layout][*type];
    rounds = *layout == kNCHW && (*type == kBFloat16 || *type == kHalf);
    if (*layout == kNCHW) {
      // As many planes as stay in the nearer caches together.
      const int64_t bytes = 2 * std::max<int64_t>(plane, 1) * like.element_size();
      width = std::max<int64_t>((1 << 16) / bytes, 1);
      if (width > kernels.width / 2) width = (width + kernels.width - 1) / kernels.width * kernels.width;
      width = std::min(width, half);
    } else {
      // Whole images, which are read in the order of memory, or parts if threads would have nothing to do.
      const int64_t threads = torch::stable::get_num_threads();
      int64_t parts = 1;
      const auto idle = [&] { return map.batch * parts < 2 * threads && map.batch * parts % threads != 0; };
      while (idle() && half / (2 * parts) >= 2 * kernels.width) parts *= 2;
      width = (half + parts - 1) / parts;
      width = (width + kernels.width - 1) / kernels.width * kernels.width;
    }
    spans = (half + width - 1) / width;
    fits_cache = 2 * width * plane * like.element_size() <= (1 << 20);
  }

  bool is_double() const { return like.scalar_type() == ScalarType::Double; }
  ScalarType wide() const { return is_double() ? ScalarType::Double : ScalarType::Float; }
  Tensor arrange(const Tensor& t) const { return arranged(t, like); }

  Tensor returned(const Tensor& u, const Tensor& work) const {
    if (direct) return work;
    Tensor out = torch::stable::empty_like(u);
    torch::stable::copy_(out, work);
    return out;
  }

  // Calls run(operands, span) on every span. The rows of numbers of `all` are those of all images, null for scratch
  // memory of a thread. A pass that goes back takes spans in reverse, while the last ones are still in cache.
  template <class A, bool Back = false, class Run>
  void for_spans(const Operands& all, const Run& run) const {
    const int64_t count = map.batch * spans, half = map.channels / 2;
    const int64_t size = map.channels * map.plane / spans;  // a thread is worth waking for 16 K elements
    torch::stable::parallel_for(0, count, size < 16384 ? 16384 / size : 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<A[]> own(new A[(kStatistics + kCoefficients + kRawSums) * map.channels]);
      Operands o = all;
      o.coefficients = own.get();
      o.raw_sums = own.get() + kCoefficients * map.channels;
      o.statistics = own.get() + (kCoefficients + kRawSums) * map.channels;
      const std::unique_ptr<A[]> part(all.grad && all.cached && rounds ? new A[2 * width * (map.plane + 16)] : nullptr);
      o.part = part.get();
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = Back ? begin + end - 1 - k : k, image = i / spans, first = i % spans * width;
        const auto of_image = [&](void* rows, int count) {
          return static_cast<A*>(rows) + image * count * map.channels;
        };
        if (all.statistics) o.statistics = of_image(all.statistics, kStatistics);
        if (all.gate_sums) o.gate_sums = of_image(all.gate_sums, kGateSums);
        if (all.norm_sums) o.norm_sums = of_image(all.norm_sums, kNormSums);
        run(o, Span{image, first, std::min(width, half - first)});
      }
    });
  }

  // Calls run(begin, end) on parts of the channels, for sums over samples.
  template <class Run>
  void for_channels(const Run& run) const {
    const int64_t grain = std::max<int64_t>(64, 16384 / std::max<int64_t>(map.batch, 1));
    torch::stable::parallel_for(0, map.channels, grain, run);
  }
};

}  // namespace shuffle_attention
