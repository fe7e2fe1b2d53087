// The CPU kernels of shuffle_attention::block_tail and its backward, for PyTorch's dispatcher.
//
// The schemas, shapes and autograd are Python's (ops/block.py), the algebra is in ops/block_reference.py.
// Where BatchNorm's statistics are given, a span makes all its steps while it is in cache; where they
// are those of the batch, all spans are summed up in between. Sums over samples have one order.
#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>

#include "kernels.h"
#include "parameters.h"
#include "tensors.h"

namespace shuffle_attention {

const KernelTable& kernel_table();  // dispatch.cpp

namespace {

using Option = std::optional<Tensor>;

// The arguments that forward and backward have in common.
struct Arguments {
  const Tensor &weight, &bias;
  const Option &mean, &var;
  ParameterTensors attention;
  double norm_eps, eps;

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

void check_shape(const Tensor& t, const Tensor& u) {
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
        n > 0 && channels > 0 && channels % (2 * n) == 0, "u must have a multiple of 2 * n channels, got ", channels, " for n = ", n);
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

// BatchNorm's numbers, a value a channel.
template <class A>
class Norm {
 public:
  Norm(const Arguments& arguments, const Plan& plan)
      : plan_(plan), eps_(arguments.norm_eps), spread_(6 * plan.map.channels), mean_(plan.map.channels),
        var_(plan.map.channels), weight_(values_of<A>(arguments.weight, plan.map.channels)) {
    const std::vector<A> bias = values_of<A>(arguments.bias, plan.map.channels);
    std::copy(bias.begin(), bias.end(), row(kBiases));
    if (!arguments.by_batch()) {
      const std::vector<A> mean = values_of<A>(*arguments.mean, plan.map.channels);
      const std::vector<A> var = values_of<A>(*arguments.var, plan.map.channels);
      std::copy(mean.begin(), mean.end(), mean_.begin());
      std::copy(var.begin(), var.end(), var_.begin());
      spread(0, plan.map.channels);
    }
  }

  Channels<A> channels(const Gates<A>& gates) const {
    const auto at = [&](int r) { return spread_.data() + r * plan_.map.channels; };
    return {at(kScales), at(kBiases), at(kMeans), at(kRests), at(kByBias), at(kByWeight), gates};
  }

  // The statistics of the batch from those of the planes, about the means.
  void pool(const A* statistics) {
    const int64_t channels = plan_.map.channels, batch = plan_.map.batch;
    plan_.for_channels([&](int64_t begin, int64_t end) {
      const auto over_samples = [&](std::vector<double>& total, const auto& term) {
        for (int64_t c = begin; c < end; ++c) total[c] = 0;
        for (int64_t b = 0; b < batch; ++b) {
          const A* const of = statistics + b * kStatistics * channels;
          for (int64_t c = begin; c < end; ++c) {
            const double mean = double(of[kPivot * channels + c]) + of[kRest * channels + c];
            total[c] += term(mean, of[kVariance * channels + c], c);
          }
        }
        for (int64_t c = begin; c < end; ++c) total[c] /= batch;
      };
      over_samples(mean_, [](double mean, double, int64_t) { return mean; });
      over_samples(var_, [&](double mean, double var, int64_t c) {
        return var + (mean - mean_[c]) * (mean - mean_[c]);
      });
      spread(begin, end);
    });
  }

  void copy_moments(A* out) const {
    std::copy(mean_.begin(), mean_.end(), out);
    std::copy(var_.begin(), var_.end(), out + plan_.map.channels);
  }

  // The gradients of weight and bias from the sums of all planes; what goes through the statistics is kept.
  void differentiate(const A* sums, bool by_batch, A* dweight, A* dbias) {
    const int64_t channels = plan_.map.channels;
    const double values = double(plan_.map.batch) * plan_.map.plane;
    plan_.for_channels([&](int64_t begin, int64_t end) {
      std::vector<double> shift(end - begin), scale(end - begin);
      for (int64_t b = 0; b < plan_.map.batch; ++b) {
        const A* const of = sums + b * kNormSums * channels;
        for (int64_t c = begin; c < end; ++c) {
          shift[c - begin] += of[kSumDz * channels + c];
          scale[c - begin] += of[kSumDzDistance * channels + c];
        }
      }
      for (int64_t c = begin; c < end; ++c) {
        const double invstd = 1 / std::sqrt(var_[c] + eps_);
        dbias[c] = shift[c - begin];
        dweight[c] = scale[c - begin] * invstd;
        row(kByBias)[c] = by_batch ? row(kScales)[c] * shift[c - begin] / values : 0;
        row(kByWeight)[c] = by_batch ? row(kScales)[c] * scale[c - begin] * invstd * invstd / values : 0;
      }
    });
  }

 private:
  enum Row { kScales, kBiases, kMeans, kRests, kByBias, kByWeight };
  A* row(Row r) { return spread_.data() + r * plan_.map.channels; }

  void spread(int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      row(kScales)[c] = weight_[c] / std::sqrt(var_[c] + eps_);
      row(kMeans)[c] = mean_[c];
      row(kRests)[c] = mean_[c] - row(kMeans)[c];
    }
  }

  const Plan& plan_;
  double eps_;
  std::vector<A> spread_;
  std::vector<double> mean_, var_;
  std::vector<A> weight_;
};

// Numbers that a kernel writes before it reads them.
template <class A>
std::unique_ptr<A[]> scratch(const Plan& plan, int rows) {
  return std::unique_ptr<A[]>(new A[rows * plan.map.batch * plan.map.channels]);
}

template <class A>
void run_forward(const Plan& plan, Tail& t, const Arguments& arguments, Tensor& moments) {
  const Parameters<A> gates(arguments.attention, plan.map, arguments.eps);
  Norm<A> norm(arguments, plan);
  const Channels<A> channels = norm.channels(gates.gates());
  t.channels = &channels;
  const auto finish = [&](const Tail& t, const Span& span) {
    plan.kernels.find_gates(t, span);
    plan.kernels.output(t, span);
  };
  if (arguments.by_batch()) {
    plan.for_spans<A>(t, [&](const Tail& t, const Span& span) { plan.kernels.statistics(t, span); });
    norm.pool(static_cast<const A*>(t.statistics));
    plan.for_spans<A, true>(t, finish);
  } else {
    plan.for_spans<A>(t, [&](const Tail& t, const Span& span) {
      plan.kernels.statistics(t, span);
      finish(t, span);
    });
  }
  norm.copy_moments(moments.template mutable_data_ptr<A>());
}

template <class A>
ParameterTensors run_backward(const Plan& plan, Tail& t, const Arguments& arguments, A* dweight, A* dbias) {
  const Parameters<A> gates(arguments.attention, plan.map, arguments.eps);
  Norm<A> norm(arguments, plan);
  const Channels<A> channels = norm.channels(gates.gates());
  const auto gate_sums = scratch<A>(plan, kGateSums), norm_sums = scratch<A>(plan, kNormSums);
  t.channels = &channels;
  t.gate_sums = gate_sums.get();
  t.norm_sums = norm_sums.get();
  const bool separate = arguments.by_batch();  // what is known of a span in the first pass is gone in the second
  const auto sum = [&](const Tail& t, const Span& span) {
    plan.kernels.find_gates(t, span);
    plan.kernels.gradient_sums(t, span);
    plan.kernels.finish_sums(t, span);
  };
  const auto finish = [&](const Tail& t, const Span& span) {
    if (separate) plan.kernels.find_gates(t, span);
    plan.kernels.find_gradient(t, span);
    plan.kernels.gradient(t, span);
  };
  if (arguments.by_batch()) {
    norm.pool(static_cast<const A*>(t.statistics));
    plan.for_spans<A>(t, sum);
    norm.differentiate(norm_sums.get(), true, dweight, dbias);
    plan.for_spans<A, true>(t, finish);
  } else {
    plan.for_spans<A>(t, [&](const Tail& t, const Span& span) {
      sum(t, span);
      finish(t, span);
    });
    norm.differentiate(norm_sums.get(), false, dweight, dbias);
  }
  return gates.gradients(arguments.attention, gate_sums.get(), plan.map);
}

const void* data_of(const Option& t) {
  return t ? t->const_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& u, const Option& shortcut, const Tensor& weight, const Tensor& bias, const Option& mean,
    const Option& var, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight, const Tensor& sbias,
    const Tensor& gn_weight, const Tensor& gn_bias, double norm_eps, double eps, bool shuffle, bool relu) {
  const Arguments arguments{
      weight, bias, mean, var, {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, norm_eps, eps};
  const Plan plan(u, arguments.attention, shuffle);
  if (shortcut) check_shape(*shortcut, u);
  const ScalarType wide = plan.is_double() ? ScalarType::Double : ScalarType::Float;
  const std::vector<int64_t> of_planes{plan.map.batch, kStatistics, plan.map.channels};
  const std::vector<int64_t> of_channels{2, plan.map.channels};
  Tensor statistics = torch::stable::new_empty(u, of_planes, wide);
  Tensor moments = torch::stable::new_empty(u, of_channels, wide);
  if (u.numel() == 0) {
    torch::stable::zero_(statistics);
    torch::stable::zero_(moments);
    return {plan.returned(u, plan.like), statistics, moments};
  }
  const Tensor from = plan.arrange(u);
  const Option added = shortcut ? Option(plan.arrange(*shortcut)) : std::nullopt;
  Tensor out = plan.like;
  Tail t{};
  t.map = plan.map;
  t.relu = relu;
  t.u = from.const_data_ptr();
  t.shortcut = data_of(added);
  t.out = out.mutable_data_ptr();
  t.statistics = statistics.mutable_data_ptr();
  if (plan.is_double()) run_forward<double>(plan, t, arguments, moments);
  else run_forward<float>(plan, t, arguments, moments);
  return {plan.returned(u, out), statistics, moments};
}

// `wide` itself, or rounded to the type and shape of the parameter.
Tensor like(const Tensor& parameter, const Tensor& wide) {
  if (same_memory(wide, parameter)) return wide;
  Tensor out = torch::stable::empty_like(parameter);
  torch::stable::copy_(out, wide);
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad, const Tensor& u, const Option& out, const Tensor& statistics, const Tensor& weight,
    const Tensor& bias, const Option& mean, const Option& var, const Tensor& cweight, const Tensor& cbias,
    const Tensor& sweight, const Tensor& sbias, const Tensor& gn_weight, const Tensor& gn_bias, double norm_eps,
    double eps, bool shuffle, bool has_shortcut) {
  const Arguments arguments{
      weight, bias, mean, var, {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, norm_eps, eps};
  const Plan plan(u, arguments.attention, shuffle);
  check_shape(grad, u);
  if (out) check_shape(*out, u);
  const ScalarType wide = plan.is_double() ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      statistics.numel() == plan.map.batch * kStatistics * plan.map.channels && statistics.scalar_type() == wide,
      "the statistics must be those that the forward returned");
  const bool separate = out && has_shortcut;
  const std::vector<int64_t> nothing{0}, of_channels{plan.map.channels};
  Tensor du = plan.like, dshortcut = separate ? torch::stable::empty_like(plan.like)
                                              : torch::stable::new_empty(u, nothing, u.scalar_type());
  Tensor dweight = torch::stable::new_empty(u, of_channels, wide), dbias = torch::stable::empty_like(dweight);
  ParameterTensors p;
  Tail t{};
  t.map = plan.map;
  const Tensor from = plan.arrange(u), upstream = plan.arrange(grad), known = torch::stable::contiguous(statistics);
  const Option activated = out ? Option(plan.arrange(*out)) : std::nullopt;
  t.u = from.const_data_ptr();
  t.grad = upstream.const_data_ptr();
  t.activated = data_of(activated);
  t.du = du.mutable_data_ptr();
  t.dshortcut = separate ? dshortcut.mutable_data_ptr() : nullptr;
  t.statistics = const_cast<void*>(known.const_data_ptr());  // the backward's steps do not write there
  if (u.numel() == 0) {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
    for (int i = 0; i < 6; ++i) {
      p[i] = torch::stable::empty_like(arguments.attention[i]);
      torch::stable::zero_(p[i]);
    }
  } else if (plan.is_double()) {
    p = run_backward<double>(
        plan, t, arguments, dweight.mutable_data_ptr<double>(), dbias.mutable_data_ptr<double>());
  } else {
    p = run_backward<float>(plan, t, arguments, dweight.mutable_data_ptr<float>(), dbias.mutable_data_ptr<float>());
  }
  return {plan.returned(u, du), separate ? plan.returned(u, dshortcut) : dshortcut, like(weight, dweight),
          like(bias, dbias), p[0], p[1], p[2], p[3], p[4], p[5]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shuffle_attention, CPU, m) {
  m.impl("block_tail", TORCH_BOX(&forward));
  m.impl("block_tail_backward", TORCH_BOX(&backward));
}

}  // namespace shuffle_attention
