// The CPU kernels of the ops and their backward ops, for PyTorch's dispatcher.
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

// Calls run(begin, end) on a column's channels in each part.
template <class Run>
void in_parts(const Plan& plan, int64_t first, int64_t count, const Run& run) {
  for (int64_t begin = first; begin < plan.map.channels; begin += plan.part()) run(begin, begin + count);
}

// `norm` is null for the layer, and `gates` are empty without attention.
template <class A>
void run_forward(const Plan& plan, Operands& operands, const Gates<A>& gates, Norm<A>* norm) {
  const Channels<A> channels = norm ? norm->channels(gates) : Channels<A>{gates};
  std::unique_ptr<A[]> own;
  if (norm && norm->by_batch && !operands.statistics) {
    own = scratch<A>(plan, kStatistics);
    operands.statistics = own.get();
  }
  operands.channels = &channels;
  operands.cached = plan.fits_cache && !(norm && norm->by_batch);
  const auto finish = [&](const Operands& o, const Span& span) {
    if (attends(plan.op)) plan.kernels.find_gates(o, span);
    plan.kernels.output(o, span);
  };
  const A* const statistics = static_cast<const A*>(operands.statistics);
  if (norm && norm->by_batch && plan.column_width > 0) {
    plan.for_columns<A>(operands, [&](const auto& visit, int64_t first, int64_t count) {
      visit(plan.kernels.statistics, false);
      in_parts(plan, first, count, [&](int64_t begin, int64_t end) { norm->pool(statistics, begin, end); });
      visit(finish, true);
    });
  } else if (norm && norm->by_batch) {
    plan.for_spans<A>(operands, plan.kernels.statistics);
    norm->pool(statistics);
    plan.for_spans<A, true>(operands, finish);
  } else {
    plan.for_spans<A>(operands, [&](const Operands& o, const Span& span) {
      if (attends(plan.op)) plan.kernels.statistics(o, span);
      finish(o, span);
    });
  }
}

// Returns the gate sums, null without attention; the layer recomputes the statistics. `moments` are those of the forward,
// null where they are to be pooled from the statistics.
template <class A>
std::unique_ptr<A[]> run_backward(
    const Plan& plan, Operands& operands, const Gates<A>& gates, Norm<A>* norm, const double* moments, A* dweight,
    A* dbias) {
  auto gate_sums = attends(plan.op) ? scratch<A>(plan, kGateSums) : nullptr;
  if (plan.like.numel() == 0) {
    if (gate_sums) std::fill_n(gate_sums.get(), kGateSums * plan.map.batch * plan.map.channels, A(0));
    return gate_sums;
  }
  const Channels<A> channels = norm ? norm->channels(gates) : Channels<A>{gates};
  const auto norm_sums = norm ? scratch<A>(plan, kNormSums) : nullptr;
  operands.channels = &channels;
  operands.cached = plan.fits_cache && !(norm && norm->by_batch);
  operands.gate_sums = gate_sums.get();
  operands.norm_sums = norm_sums.get();
  const auto sum = [&](const Operands& o, const Span& span) {
    if (!norm) plan.kernels.statistics(o, span);
    if (attends(plan.op)) plan.kernels.find_gates(o, span);
    plan.kernels.gradient_sums(o, span);
    if (attends(plan.op)) plan.kernels.finish_sums(o, span);
  };
  const auto finish = [&](const Operands& o, const Span& span) {
    if (attends(plan.op)) plan.kernels.find_gradient(o, span);
    plan.kernels.gradient(o, span);
  };
  const auto finish_again = [&](const Operands& o, const Span& span) {
    if (attends(plan.op)) plan.kernels.find_gates(o, span);  // coefficients are scratch memory
    finish(o, span);
  };
  const A* const statistics = static_cast<const A*>(operands.statistics);
  if (moments) norm->read_moments(moments);
  if (norm && norm->by_batch && plan.column_width > 0) {
    plan.for_columns<A>(operands, [&](const auto& visit, int64_t first, int64_t count) {
      in_parts(plan, first, count, [&](int64_t begin, int64_t end) {
        if (!moments) norm->pool(statistics, begin, end);
      });
      visit(sum, false);
      in_parts(plan, first, count, [&](int64_t begin, int64_t end) {
        norm->differentiate(norm_sums.get(), dweight, dbias, begin, end);
      });
      visit(finish_again, true);
    });
  } else if (norm && norm->by_batch) {
    if (!moments) norm->pool(statistics);
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
  return gate_sums;
}

Tensor layer(
    const Tensor& x, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight, const Tensor& sbias,
    const Tensor& gn_weight, const Tensor& gn_bias, double eps, bool shuffle, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(x, kLayer, attention, shuffle);
  Tensor out = plan.like;
  if (x.numel() == 0) return plan.returned(x, out);
  const Tensor from = plan.arrange(x);
  Operands o{plan.map};
  o.u = from.const_data_ptr();
  o.out = out.mutable_data_ptr();
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    run_forward<A>(plan, o, Parameters<A>(attention, plan.map, eps, gain).gates(), nullptr);
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return plan.returned(x, out);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> layer_backward(
    const Tensor& grad, const Tensor& x, const Tensor& cweight, const Tensor& cbias, const Tensor& sweight,
    const Tensor& sbias, const Tensor& gn_weight, const Tensor& gn_bias, double eps, bool shuffle, double gain) {
  const ParameterTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  const Plan plan(x, kLayer, attention, shuffle);
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
    const auto sums = run_backward<A>(plan, o, parameters.gates(), nullptr, nullptr, nullptr, nullptr);
    p = parameters.gradients(sums.get(), plan.map);
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return {plan.returned(x, dx), p[0], p[1], p[2], p[3], p[4], p[5]};
}

const void* data_of(const Option& t) {
  return t ? t->const_data_ptr() : nullptr;
}

struct AttentionTensors {
  const Option &cweight, &cbias, &sweight, &sbias, &gn_weight, &gn_bias;
  double eps, gain;
  bool shuffle;

  Op op() const { return cweight ? kTail : kPlain; }
  ParameterTensors six() const {
    if (!cweight) return {};
    STD_TORCH_CHECK(cbias && sweight && sbias && gn_weight && gn_bias, "attention has six parameters, or none");
    return {*cweight, *cbias, *sweight, *sbias, *gn_weight, *gn_bias};
  }
};

// Memory that is written must not be read as another element.
void check_apart(const Tensor& written, const Tensor& read) {
  const auto begin = [](const Tensor& t) { return static_cast<const char*>(t.const_data_ptr()); };
  const auto end = [&](const Tensor& t) {
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return begin(t) + (last + 1) * t.element_size();
  };
  const bool same = begin(written) == begin(read) && same_memory(written, read);
  STD_TORCH_CHECK(
      same || end(written) <= begin(read) || end(read) <= begin(written),
      "the shortcut must not share memory with the map that is written over");
}

// Returns the output, the statistics of planes and the moments, each of the last two empty without what it is of.
std::tuple<Tensor, Tensor, Tensor> run_tail(
    const Tensor& u, const Option& shortcut, const NormTensors& norm_tensors, const AttentionTensors& attention,
    bool relu, bool over) {
  const ParameterTensors six = attention.six();
  const Plan plan(u, attention.op(), six, attention.shuffle, over);
  if (shortcut) check_shape(*shortcut, u);
  std::vector<int64_t> of_planes{plan.map.batch, kStatistics, plan.map.channels}, of_channels{2, plan.map.channels};
  if (!attends(plan.op)) of_planes = {0};
  if (!norm_tensors.weight) of_channels = {0};
  Tensor statistics = torch::stable::new_empty(u, of_planes, plan.wide());
  Tensor moments = torch::stable::new_empty(u, of_channels, ScalarType::Double);
  if (u.numel() == 0) {
    torch::stable::zero_(statistics);
    torch::stable::zero_(moments);
    return {plan.returned(u, plan.like, over), statistics, moments};
  }
  if (over && shortcut) check_apart(u, *shortcut);
  const Tensor from = plan.arrange(u);
  const Option added = shortcut ? Option(plan.arrange(*shortcut)) : std::nullopt;
  Tensor out = plan.like;
  Operands o{plan.map, relu};
  o.u = from.const_data_ptr();
  o.shortcut = data_of(added);
  o.out = out.mutable_data_ptr();
  o.statistics = attends(plan.op) ? statistics.mutable_data_ptr() : nullptr;
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    Norm<A> norm(norm_tensors, plan);
    std::optional<Parameters<A>> parameters;
    if (attends(plan.op)) parameters.emplace(six, plan.map, attention.eps, attention.gain);
    run_forward<A>(plan, o, parameters ? parameters->gates() : Gates<A>{}, &norm);
    if (norm_tensors.weight) norm.write_moments(moments.mutable_data_ptr<double>());
  };
  plan.is_double() ? run(0.0) : run(0.0f);
  return {plan.returned(u, out, over), statistics, moments};
}

std::tuple<Tensor, Tensor, Tensor> block_tail(
    const Tensor& u, const Option& shortcut, const Option& weight, const Option& bias, const Option& mean,
    const Option& var, const Option& cweight, const Option& cbias, const Option& sweight, const Option& sbias,
    const Option& gn_weight, const Option& gn_bias, double norm_eps, double eps, bool shuffle, bool relu, double gain) {
  return run_tail(
      u, shortcut, {weight, bias, mean, var, norm_eps},
      {cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, gain, shuffle}, relu, false);
}

// Over u, a channel at a time: the shuffle would write where another channel has not been read.
void block_tail_(
    const Tensor& u, const Option& shortcut, const Option& weight, const Option& bias, const Option& mean,
    const Option& var, const Option& cweight, const Option& cbias, const Option& sweight, const Option& sbias,
    const Option& gn_weight, const Option& gn_bias, double norm_eps, double eps, bool relu, double gain) {
  const NormTensors norm{weight, bias, mean, var, norm_eps};
  STD_TORCH_CHECK(!norm.by_batch(), "block_tail_ needs the statistics of BatchNorm");
  run_tail(u, shortcut, norm, {cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, gain, false}, relu, true);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_tail_backward(
    const Tensor& grad, const Tensor& u, const Option& out, const Tensor& statistics, const Option& weight,
    const Option& bias, const Option& mean, const Option& var, const Option& cweight, const Option& cbias,
    const Option& sweight, const Option& sbias, const Option& gn_weight, const Option& gn_bias, double norm_eps,
    double eps, bool shuffle, bool has_shortcut, double gain, bool mask) {
  const AttentionTensors attention{cweight, cbias, sweight, sbias, gn_weight, gn_bias, eps, gain, shuffle};
  const ParameterTensors six = attention.six();
  const Plan plan(u, attention.op(), six, shuffle);
  const NormTensors norm_tensors{weight, bias, mean, var, norm_eps};
  check_shape(grad, u);
  if (out) check_shape(*out, u);
  STD_TORCH_CHECK(
      attends(plan.op) ? statistics.numel() == plan.map.batch * kStatistics * plan.map.channels &&
              statistics.scalar_type() == plan.wide()
                       : !norm_tensors.by_batch() || (statistics.numel() == 2 * plan.map.channels &&
                                                      statistics.scalar_type() == ScalarType::Double),
      "the statistics must be those that the forward returned");
  STD_TORCH_CHECK(!mask || (!attends(plan.op) && !has_shortcut && !out), "u alone does not tell what ReLU let through");
  const bool separate = out && has_shortcut;
  const std::vector<int64_t> none{0};
  const auto nothing = [&] { return torch::stable::new_empty(u, none, u.scalar_type()); };
  Tensor du = plan.like, dshortcut = separate ? torch::stable::empty_like(plan.like) : nothing();
  const Tensor from = plan.arrange(u), upstream = plan.arrange(grad), known = torch::stable::contiguous(statistics);
  const Option activated = out ? Option(plan.arrange(*out)) : std::nullopt;
  Operands o{plan.map, mask};
  o.u = from.const_data_ptr();
  o.grad = upstream.const_data_ptr();
  o.activated = data_of(activated);
  o.du = du.mutable_data_ptr();
  o.dshortcut = separate ? dshortcut.mutable_data_ptr() : nullptr;
  // The backward's steps do not write there.
  o.statistics = attends(plan.op) ? const_cast<void*>(known.const_data_ptr()) : nullptr;
  ParameterTensors p;
  Tensor dweight, dbias;
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    std::optional<Parameters<A>> parameters;
    if (attends(plan.op)) parameters.emplace(six, plan.map, eps, gain);
    std::vector<A> by_weight(plan.map.channels), by_bias(plan.map.channels);
    Norm<A> norm(norm_tensors, plan);
    const double* const moments = !parameters && norm.by_batch ? known.const_data_ptr<double>() : nullptr;
    const auto sums = run_backward<A>(
        plan, o, parameters ? parameters->gates() : Gates<A>{}, &norm, moments, by_weight.data(), by_bias.data());
    dweight = weight ? rounded(*weight, by_weight.data()) : nothing();
    dbias = weight ? rounded(*bias, by_bias.data()) : nothing();
    if (parameters) p = parameters->gradients(sums.get(), plan.map);
    else for (Tensor& t : p) t = nothing();
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
  m.impl("block_tail_", TORCH_BOX(&block_tail_));
  m.impl("block_tail_backward", TORCH_BOX(&block_tail_backward));
}

}  // namespace shuffle_attention
