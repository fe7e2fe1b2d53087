// How the end of a residual block is cut into spans, and in which layout and type it is worked on.
#pragma once

#include <algorithm>
#include <memory>

#include "parameters.h"
#include "tensors.h"

namespace shuffle_attention {

const KernelTable& kernel_table();  // dispatch.cpp

using Option = std::optional<Tensor>;

// The arguments that forward and backward have in common.
struct Arguments {
  const Tensor &weight, &bias;
  const Option &mean, &var;
  ParameterTensors attention;
  double norm_eps, eps, gain;

  bool by_batch() const { return !mean || !var; }
};

template <class A>
std::vector<A> values_of(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(
      t.numel() == count, "BatchNorm must have as many values as channels, got ", t.numel(), " for ", count);
  const Tensor typed = t.scalar_type() == scalar_type<A> ? t : torch::stable::to(t, scalar_type<A>);
  const Tensor flat = typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
  const A* const values = flat.template const_data_ptr<A>();
  return {values, values + count};
}

inline void check_shape(const Tensor& t, const Tensor& u) {
  bool same = t.dim() == u.dim();
  for (int64_t i = 0; same && i < u.dim(); ++i) same = t.size(i) == u.size(i);
  STD_TORCH_CHECK(same, "shortcut, output and gradient must have the shape of u");
}

// How one call is worked on.
struct Plan {
  Map map;
  TailKernels kernels;
  Tensor like;       // a map as the kernels want it
  bool direct;       // whether that is as u stands in memory
  int64_t width, spans;

  Plan(const Tensor& u, const ParameterTensors& parameters, bool shuffle)
      : like(torch::stable::empty_like(u)), direct(true) {
    STD_TORCH_CHECK(u.dim() >= 3 && u.dim() <= 5, "u must have 3 to 5 dimensions, got ", u.dim());
    const int64_t n = parameters[0].numel(), channels = u.size(1), half = channels / 2;
    for (const Tensor& p : parameters) {
      STD_TORCH_CHECK(p.numel() == n, "the six parameters must all have the same number of values");
    }
    STD_TORCH_CHECK(
        n > 0 && channels > 0 && channels % (2 * n) == 0, "u must have a multiple of 2 * n channels, got ", channels,
        " for n = ", n);
    int64_t plane = 1;
    for (int64_t i = 2; i < u.dim(); ++i) plane *= u.size(i);
    map = {u.size(0), channels, plane, shuffle, false};

    auto type = kernel_type(u.scalar_type());
    auto layout = layout_of(like);
    if (!type || !layout) {
      like = torch::stable::new_empty(u, u.sizes(), type ? u.scalar_type() : ScalarType::Float);
      type = type.value_or(kFloat);
      layout = kPlanes;
      direct = false;
    }
    kernels = kernel_table().tail[*layout][*type];
    if (*layout == kPlanes) {
      // As many planes as stay in the nearer caches together.
      const int64_t bytes = 2 * std::max<int64_t>(plane, 1) * like.element_size();
      width = std::clamp<int64_t>((1 << 16) / bytes, 1, half);
    } else {
      // Whole images, which are read in the order of memory, or parts if there are too few for all threads.
      const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
      int64_t parts = 1;
      while (map.batch * parts < wanted && half / (2 * parts) >= 2 * kernels.width) parts *= 2;
      width = (half + parts - 1) / parts;
      width = (width + kernels.width - 1) / kernels.width * kernels.width;
    }
    spans = (half + width - 1) / width;
  }

  bool is_double() const { return like.scalar_type() == ScalarType::Double; }
  Tensor arrange(const Tensor& t) const { return arranged(t, like); }

  Tensor returned(const Tensor& u, const Tensor& work) const {
    if (direct) return work;
    Tensor out = torch::stable::empty_like(u);
    torch::stable::copy_(out, work);
    return out;
  }

  // Calls run(tail, span) on every span, with memory for the coefficients and raw sums of an image. What
  // a thread has had last it takes first in a pass that goes back, while it is still in cache.
  template <class A, bool Back = false, class Run>
  void for_spans(const Tail& shared, const Run& run) const {
    const int64_t count = map.batch * spans, half = map.channels / 2;
    const int64_t size = map.channels * map.plane / spans;  // a thread is worth waking for 16 K elements
    torch::stable::parallel_for(0, count, size < 16384 ? 16384 / size : 1, [&](int64_t begin, int64_t end) {
      const std::unique_ptr<A[]> own(new A[(kCoefficients + kRawSums) * map.channels]);
      Tail t = shared;
      t.coefficients = own.get();
      t.raw_sums = own.get() + kCoefficients * map.channels;
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = Back ? begin + end - 1 - k : k, first = i % spans * width;
        run(t, Span{i / spans, first, std::min(width, half - first)});
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
