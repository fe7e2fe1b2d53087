// The CPU kernels of shuffle_attention::block_tail and its backward, for PyTorch's dispatcher.
//
// The schemas, shapes and autograd are Python's (../schema.py), the algebra is in ../block_reference.py.
// Where BatchNorm's statistics are given, a span makes all its steps while it is in cache; where they
// are those of the batch, all spans are summed up in between. Sums over samples have one order.
#include <memory>
#include <tuple>

#include "norm.h"
#include "parameters.h"
#include "plan.h"
#include "tensors.h"

namespace shuffle_attention {

namespace {

// Numbers that a kernel writes before it reads them.
template <class A>
std::unique_ptr<A[]> scratch(const Plan& plan, int rows) {
  return std::unique_ptr<A[]>(new A[rows * plan.map.batch * plan.map.channels]);
}

template <class A>
void run_forward(const Plan& plan, Tail& t, const Arguments& arguments, Tensor& moments) {
  const Parameters<A> gates(arguments.attention, plan.map, arguments.eps, arguments.gain);
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
  const Parameters<A> gates(arguments.attention, plan.map, arguments.eps, arguments.gain);
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
    const Tensor& gn_weight, const Tensor& gn_bias, double norm_eps, double eps, bool shuffle, bool relu, double gain) {
  const Arguments arguments{
      weight, bias, mean, var, {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, norm_eps, eps, gain};
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
    double eps, bool shuffle, bool has_shortcut, double gain) {
  const Arguments arguments{
      weight, bias, mean, var, {cweight, cbias, sweight, sbias, gn_weight, gn_bias}, norm_eps, eps, gain};
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
