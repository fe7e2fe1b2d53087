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
  Op op;
  bool fits_cache;  // whether a span does
  bool rounds;      // whether du would round what it keeps of itself: in NCHW, where maps have a smaller type than sums
  bool direct;  // whether `like` has the layout and type of u
  int64_t width, spans;
  int64_t column_width;  // of the spans of for_columns; 0 if it is not for this map

  // With `over` true, results may be written over u.
  Plan(const Tensor& u, Op op, const ParameterTensors& parameters, bool shuffle, bool over = false)
      : like(over ? u : torch::stable::empty_like(u)), op(op), direct(true) {
    STD_TORCH_CHECK(u.dim() >= 3 && u.dim() <= 5, "the map must have 3 to 5 dimensions, got ", u.dim());
    const int64_t channels = u.size(1);
    STD_TORCH_CHECK(channels > 0, "the map must have channels");
    if (attends(op)) {
      const int64_t n = parameters[0].numel();
      for (const Tensor& p : parameters) {
        STD_TORCH_CHECK(p.numel() == n, "the six parameters must all have the same number of values");
      }
      STD_TORCH_CHECK(
          n > 0 && channels % (2 * n) == 0, "the map must have a multiple of 2 * n channels, got ", channels,
          " for n = ", n);
    }
    int64_t plane = 1;
    for (int64_t i = 2; i < u.dim(); ++i) plane *= u.size(i);
    map = {u.size(0), channels, plane, shuffle && attends(op)};

    auto type = kernel_type(u.scalar_type());
    auto layout = layout_of(like);
    if (!type || !layout) {
      like = torch::stable::new_empty(u, u.sizes(), type ? u.scalar_type() : ScalarType::Float);
      type = type.value_or(kFloat);
      layout = kNCHW;
      direct = false;
    }
    kernels = kernel_table().at[op].at[*layout][*type];
    rounds = attends(op) && *layout == kNCHW && (*type == kBFloat16 || *type == kHalf);
    const int64_t threads = torch::stable::get_num_threads();
    const auto whole = [&](int64_t count) { return (count + kernels.width - 1) / kernels.width * kernels.width; };
    column_width = 0;
    if (*layout == kNCHW) {
      // As many planes as stay in the nearest caches together, but enough for a vector of what each has one of.
      const int64_t bytes = parts_of(op) * std::max<int64_t>(plane, 1) * like.element_size();
      const auto planes = [&](int64_t most) { return most > kernels.width / 2 ? std::min(whole(most), part()) : most; };
      const int64_t filled = (1 << 15) / bytes / kernels.width * kernels.width;
      const int64_t few = std::min<int64_t>((1 << 16) / bytes, kernels.width);
      width = planes(std::clamp<int64_t>(std::max(filled, few), 1, part()));
      const int64_t fit = std::clamp<int64_t>((1 << 18) / (bytes * std::max<int64_t>(map.batch, 1)), 1, part());
      const int64_t columns = ((part() + fit - 1) / fit + threads - 1) / threads * threads;  // as many for every thread
      if (columns <= part()) column_width = planes((part() + columns - 1) / columns);
    } else {
      // Whole images, which are read in the order of memory, or parts if threads would have nothing to do.
      int64_t cuts = 1;
      const auto idle = [&] { return map.batch * cuts < 2 * threads && map.batch * cuts % threads != 0; };
      while (idle() && part() / (2 * cuts) >= 2 * kernels.width) cuts *= 2;
      width = whole((part() + cuts - 1) / cuts);
      if (map.batch == 1) column_width = width;
    }
    spans = (part() + width - 1) / width;
    fits_cache = parts_of(op) * width * plane * like.element_size() <= (1 << 20);
  }

  int64_t part() const { return map.channels / parts_of(op); }  // of the channels
  bool is_double() const { return like.scalar_type() == ScalarType::Double; }
  ScalarType wide() const { return is_double() ? ScalarType::Double : ScalarType::Float; }
  Tensor arrange(const Tensor& t) const { return arranged(t, like); }

  Tensor returned(const Tensor& u, const Tensor& work, bool over = false) const {
    if (direct) return work;
    Tensor out = over ? u : torch::stable::empty_like(u);
    torch::stable::copy_(out, work);
    return out;
  }

  // The operands of a thread. The rows of numbers of `all` are those of all images, null for scratch memory.
  template <class A>
  class Worker {
   public:
    Worker(const Plan& plan, const Operands& all)
        : map_(plan.map), part_channels_(plan.part()), all_(all), o_(all),
          own_(new A[(kStatistics + kCoefficients + kRawSums) * map_.channels]),
          part_(all.grad && all.cached && plan.rounds ? new A[2 * plan.width * (map_.plane + 16)] : nullptr) {
      o_.coefficients = own_.get();
      o_.raw_sums = own_.get() + kCoefficients * map_.channels;
      o_.statistics = own_.get() + (kCoefficients + kRawSums) * map_.channels;
      o_.part = part_.get();
    }

    // Calls run(operands, span) on `count` channels, or as many as there are.
    template <class Run>
    void operator()(const Run& run, int64_t image, int64_t first, int64_t count) {
      const auto of_image = [&](void* rows, int count) {
        return static_cast<A*>(rows) + image * count * map_.channels;
      };
      if (all_.statistics) o_.statistics = of_image(all_.statistics, kStatistics);
      if (all_.gate_sums) o_.gate_sums = of_image(all_.gate_sums, kGateSums);
      if (all_.norm_sums) o_.norm_sums = of_image(all_.norm_sums, kNormSums);
      run(o_, Span{image, first, std::min(count, part_channels_ - first)});
    }

   private:
    const Map& map_;
    int64_t part_channels_;
    const Operands& all_;
    Operands o_;
    std::unique_ptr<A[]> own_, part_;
  };

  // Calls run(operands, span) on every span. A pass that goes back takes spans in reverse, while the last ones are still
  // in cache.
  template <class A, bool Back = false, class Run>
  void for_spans(const Operands& all, const Run& run) const {
    const int64_t size = map.channels * map.plane / spans;  // a thread is worth waking for 16 K elements
    torch::stable::parallel_for(0, map.batch * spans, size < 16384 ? 16384 / size : 1, [&](int64_t begin, int64_t end) {
      Worker<A> worker(*this, all);
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = Back ? begin + end - 1 - k : k;
        worker(run, i / spans, i % spans * width, width);
      }
    });
  }

  // Calls run(visit, first, count) on every column, the spans of the same channels in all images. visit(step, back) calls
  // step(operands, span) on them. Nothing else waits for the sums over the images of a column.
  template <class A, class Run>
  void for_columns(const Operands& all, const Run& run) const {
    const int64_t columns = (part() + column_width - 1) / column_width;
    const int64_t size = map.batch * map.channels * map.plane / columns;
    torch::stable::parallel_for(0, columns, size < 16384 ? 16384 / size : 1, [&](int64_t begin, int64_t end) {
      Worker<A> worker(*this, all);
      for (int64_t first = begin * column_width; first < std::min(end * column_width, part()); first += column_width) {
        const auto visit = [&](const auto& step, bool back) {
          for (int64_t b = 0; b < map.batch; ++b) {
            worker(step, back ? map.batch - 1 - b : b, first, column_width);
          }
        };
        run(visit, first, std::min(column_width, part() - first));
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
