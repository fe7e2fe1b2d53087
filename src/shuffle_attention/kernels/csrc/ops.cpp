// The CPU kernels of both ops and their backward ops, for PyTorch's dispatcher.
//
// The schemas, shapes and autograd are Python's (../schema.py). Only PyTorch's stable C++ interface is used, so that one
// binary serves every later PyTorch and Python.
//
// A span makes all its steps while it is in cache, except where BatchNorm's statistics are those of the batch: then the
// spans of a column, or all spans, are summed up in between. Sums over samples have one order.
#include <torch/csrc/stable/library.h>

#include <memory>
#include <tuple>

#include "norm.h"
#include "parameters.h"
#include "plan.h"

namespace shuffle_attention {

namespace {

// Uninitialised: kernels write every element before it is read.
template <class A>
std::unique_ptr<A[]> scratch(const Plan& plan, int rows) {
  return std::unique_ptr<A[]>(new A[rows * plan.map.batch * plan.map.channels]);
}

// Calls run(begin, end) on a column's channels in both halves.
template <class Run>
void in_both_halves(const Map& map, int64_t first, int64_t count, const Run& run) {
  for (const int64_t begin : {first, map.channels / 2 + first}) run(begin, begin + count);
}

// `norm` is null for the layer.
template <class A>
void run_forward(const Plan& plan, Operands& operands, const Parameters<A>& parameters, Norm<A>* norm) {
  const Channels<A> channels = norm ? norm->channels(parameters.gates()) : Channels<A>{parameters.gates()};
  operands.channels = &channels;
  operands.cached = plan.fits_cache && !(norm && norm->by_batch);
  const auto finish = [&](const Operands& o, const Span& span) {
    plan.kernels.find_gates(o, span);
    plan.kernels.output(o, span);
  };
  const A* const statistics = static_cast<const A*>(operands.statistics);
  if (norm && norm->by_batch && plan.column_width > 0) {
    plan.for_columns<A>(operands, [&](const auto& visit, int64_t first, int64_t count) {
      visit(plan.kernels.statistics, false);
      in_both_halves(plan.map, first, count, [&](int64_t begin, int64_t end) { norm->pool(statistics, begin, end); });
      visit(finish, true);
    });
  } else if (norm && norm->by_batch) {
    plan.for_spans<A>(operands, plan.kernels.statistics);
    norm->pool(statistics);
    plan.for_spans<A, true>(operands, finish);
  } else {
    plan.for_spans<A>(operands, [&](const Operands& o, const Span& span) {
      plan.kernels.statistics(o, span);
      finish(o, span);
    });
  }
}

// Returns the gradients of the six parameters; the layer recomputes the statistics.
template <class A>
ParameterTensors run_backward(
    const Plan& plan, Operands& operands, const Parameters<A>& parameters, Norm<A>* norm, A* dweight, A* dbias) {
  if (plan.like.numel() == 0) {
    const std::vector<A> zeros(kGateSums * plan.map.batch * plan.map.channels);
    return parameters.gradients(zeros.data(), plan.map);
  }
  const Channels<A> channels = norm ? norm->channels(parameters.gates()) : Channels<A>{parameters.gates()};
  const auto gate_sums = scratch<A>(plan, kGateSums), norm_sums = norm ? scratch<A>(plan, kNormSums) : nullptr;
  operands.channels = &channels;
  operands.cached = plan.fits_cache && !(norm && norm->by_batch);
  operands.gate_sums = gate_sums.get();
  operands.norm_sums = norm_sums.get();
  const auto sum = [&](const Operands& o, const Span& span) {
    if (!norm) plan.kernels.statistics(o, span);
    plan.kernels.find_gates(o, span);
    plan.kernels.gradient_sums(o, span);
    plan.kernels.finish_sums(o, span);
  };
  const auto finish = [&](const Operands& o, const Span& span) {
    plan.kernels.find_gradient(o, span);
    plan.kernels.gradient(o, span);
  };
  const auto finish_again = [&](const Operands& o, const Span& span) {
    plan.kernels.find_gates(o, span);  // coefficients are scratch memory
    finish(o, span);
  };
  const A* const statistics = static_cast<const A*>(operands.statistics);
  if (norm && norm->by_batch && plan.column_width > 0) {
    plan.for_columns<A>(operands, [&](const auto& visit, int64_t first, int64_t count) {
      in_both_halves(plan.map, first, count, [&](int64_t begin, int64_t end) { norm->pool(statistics, begin, end); });
      visit(sum, false);
      in_both_halves(plan.map, first, count, [&](int64_t begin, int64_t end) {
        norm->differentiate(norm_sums.get(), dweight, dbias, begin, end);
      });
      visit(finish_again, true);
    });
  } else if (norm && norm->by_batch) {
    norm->pool(statistics);
    plan.for_spans<A>(operands, sum);
    norm->differentiate(norm_sums.get(), dweight, dbias);
    plan.for_spans<A, true>(operands, finish_again);
  } else {
    plan.for_spans<A>(operands, [&](const Operands& o, const Span& span) {
      sum(o, span);
      finish(o, span);
    });
    if (norm) norm->differentiate(norm_sums.get(), dweight, dbias);
  }
  return parameters.gradients(gate_sums.get(), plan.map);
}

Tensor layer(
    const Tensor& x, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight, const Tensor& sbias,
    const Tensor& gn_weight, const Tensor& gn_bias, double eps, bool shuffle, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(x, attention, shuffle, false);
  Tensor out = plan.like;
  if (x.numel() == 0) return plan.returned(x, out);
  const Tensor from = plan.arrange(x);
  Operands o{plan.map};
  o.u = from.const_data_ptr();
  o.out = out.mutable_data_ptr();
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    run_forward<A>(plan, o, Parameters<A>(attention, plan.map, eps, gain), nullptr);
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return plan.returned(x, out);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    const Tensor& grad, const Tensor& x, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight,
    const Tensor& sbias, const Tensor& gn_weight, const Tensor& gn_bias, double eps, bool shuffle, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(x, attention, shuffle, false);
  check_shape(grad, x);
  Tensor dx = plan.like;
  const Tensor from = plan.arrange(x), upstream = plan.arrange(grad);
  Operands o{plan.map};
  o.u = from.const_data_ptr();
  o.grad = upstream.const_data_ptr();
  o.du = dx.mutable_data_ptr();
  ParameterTensors p;
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const Parameters<A> parameters(attention, plan.map, eps, gain);
    p = run_backward<A>(plan, o, parameters, nullptr, nullptr, nullptr);
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return {plan.returned(x, dx), p[0], p[1], p[2], p[3], p[4], p[5]};
}

const void* data_of(const Option& t) {
  return t ? t->const_data_ptr() : nullptr;
}

std::tuple<Tensor, Tensor, Tensor> block_tail(
    const Tensor& u, const Option& shortcut, const Tensor& weight, const Tensor& bias, const Option& mean,
    const Option& var, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight, const Tensor& sbias,
    const Tensor& gn_weight, const Tensor& gn_bias, double norm_eps, double eps, bool shuffle, bool relu, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(u, attention, shuffle, true);
  if (shortcut) check_shape(*shortcut, u);
  const std::vector<int64_t> of_planes{plan.map.batch, kStatistics, plan.map.channels};
  const std::vector<int64_t> of_channels{2, plan.map.channels};
  Tensor statistics = torch::stable::new_empty(u, of_planes, plan.wide());
  Tensor moments = torch::stable::new_empty(u, of_channels, plan.wide());
  if (u.numel() == 0) {
    torch::stable::zero_(statistics);
    torch::stable::zero_(moments);
    return {plan.returned(u, plan.like), statistics, moments};
  }
  const Tensor from = plan.arrange(u);
  const Option added = shortcut ? Option(plan.arrange(*shortcut)) : std::nullopt;
  Tensor out = plan.like;
  Operands o{plan.map, relu};
  o.u = from.const_data_ptr();
  o.shortcut = data_of(added);
  o.out = out.mutable_data_ptr();
  o.statistics = statistics.mutable_data_ptr();
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    Norm<A> norm({weight, bias, mean, var, norm_eps}, plan);
    run_forward<A>(plan, o, Parameters<A>(attention, plan.map, eps, gain), &norm);
    norm.copy_moments(moments.mutable_data_ptr<A>());
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return {plan.returned(u, out), statistics, moments};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_tail_backward(
    const Tensor& grad, const Tensor& u, const Option& out, const Tensor& statistics, const Tensor& weight,
    const Tensor& bias, const Option& mean, const Option& var, const Tensor& cweight, const Tensor& cbias,
    const Tensor& sweight, const Tensor& sbias, const Tensor& gn_weight, const Tensor& gn_bias, double norm_eps,
    double eps, bool shuffle, bool has_shortcut, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(u, attention, shuffle, true);
  check_shape(grad, u);
  if (out) check_shape(*out, u);
  STD_TORCH_CHECK(
      statistics.numel() == plan.map.batch * kStatistics * plan.map.channels &&
          statistics.scalar_type() == plan.wide(),
      "the statistics must be those that the forward returned");
  const bool separate = out && has_shortcut;
  const std::vector<int64_t> nothing{0};
  Tensor du = plan.like, dshortcut = separate ? torch::stable::empty_like(plan.like)
                                              : torch::stable::new_empty(u, nothing, u.scalar_type());
  const Tensor from = plan.arrange(u), upstream = plan.arrange(grad), known = torch::stable::contiguous(statistics);
  const Option activated = out ? Option(plan.arrange(*out)) : std::nullopt;
  Operands o{plan.map};
  o.u = from.const_data_ptr();
  o.grad = upstream.const_data_ptr();
  o.activated = data_of(activated);
  o.du = du.mutable_data_ptr();
  o.dshortcut = separate ? dshortcut.mutable_data_ptr() : nullptr;
  o.statistics = const_cast<void*>(known.const_data_ptr());  // the backward's steps do not write there
  ParameterTensors p;
  Tensor dweight = weight, dbias = bias;
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const Parameters<A> parameters(attention, plan.map, eps, gain);
    std::vector<A> by_weight(plan.map.channels), by_bias(plan.map.channels);
    Norm<A> norm({weight, bias, mean, var, norm_eps}, plan);
    p = run_backward<A>(plan, o, parameters, &norm, by_weight.data(), by_bias.data());
    dweight = rounded(weight, by_weight.data());
    dbias = rounded(bias, by_bias.data());
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return {plan.returned(u, du), separate ? plan.returned(u, dshortcut) : dshortcut, dweight, dbias,
          p[0], p[1], p[2], p[3], p[4], p[5]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shuffle_attention, CPU, m) {
  m.impl("shuffle_attention", TORCH_BOX(&layer));
  m.impl("shuffle_attention_backward", TORCH_BOX(&layer_backward));
  m.impl("block_tail", TORCH_BOX(&block_tail));
  m.impl("block_tail_backward", TORCH_BOX(&block_tail_backward));
}

}  // namespace shuffle_attention
