// The CPU kernels of shuffle_attention::shuffle_attention and its backward, for PyTorch's dispatcher.
//
// The schemas, shapes and autograd are Python's (../schema.py). Only PyTorch's stable C++ interface
// is used, so that one binary serves every later PyTorch and Python.
#include <memory>
#include <tuple>

#include "kernels.h"
#include "parameters.h"
#include "tensors.h"

namespace shuffle_attention {

const KernelTable& kernel_table();  // dispatch.cpp

namespace {

// The tensors of one call: it returns `out`, and the kernel writes to `work`.
struct Call {
  Map map;
  Kernels kernels;
  Tensor out, work;

  Call(const Tensor& x, const ParameterTensors& parameters, bool shuffle) : out(torch::stable::empty_like(x)), work(out) {
    STD_TORCH_CHECK(x.dim() >= 3 && x.dim() <= 5, "x must have 3 to 5 dimensions, got ", x.dim());
    const int64_t n = parameters[0].numel(), channels = x.size(1);
    for (const Tensor& p : parameters) {
      STD_TORCH_CHECK(p.numel() == n, "the six parameters must all have the same number of values");
    }
    STD_TORCH_CHECK(
        n > 0 && channels % (2 * n) == 0, "x must have a multiple of 2 * n channels, got ", channels, " for n = ", n);
    int64_t plane = 1;
    for (int64_t i = 2; i < x.dim(); ++i) plane *= x.size(i);
    map = {x.size(0), channels, plane, shuffle, false};

    auto type = kernel_type(x.scalar_type());
    auto layout = layout_of(out);
    if (!type || !layout) {
      work = torch::stable::new_empty(x, x.sizes(), type ? x.scalar_type() : ScalarType::Float);
      type = type.value_or(kFloat);
      layout = kPlanes;
    }
    kernels = kernel_table().at[*layout][*type];
    // A larger tile is better gone through in the order of memory than kept in cache, if there is work for all threads.
    const int64_t half = channels / 2, tile_bytes = 2 * kernels.width * plane * x.element_size();
    map.whole_rows = *layout == kRows && tile_bytes > (1 << 17) && half % kernels.width == 0 &&
        half / kernels.width <= 16 && map.batch >= torch::stable::get_num_threads();
  }

  bool is_double() const { return work.scalar_type() == ScalarType::Double; }

  template <class Run>
  void in_parallel(const Run& run) const {
    const int64_t units = kernels.units(map);
    // A unit has the same size everywhere but at the edge; a thread is worth waking for 16 K elements.
    const int64_t size = map.batch * map.channels * map.plane / units;
    torch::stable::parallel_for(0, units, size < 16384 ? 16384 / size : 1, run);
  }

  Tensor finish() {
    if (work.get() != out.get()) torch::stable::copy_(out, work);
    return out;
  }
};

template <class A>
void run_forward(const Call& call, const Tensor& x, const ParameterTensors& parameters, double eps, double gain) {
  const Parameters<A> p(parameters, call.map, eps, gain);
  const void* const from = x.const_data_ptr();
  void* const to = call.work.mutable_data_ptr();
  call.in_parallel([&](int64_t begin, int64_t end) {
    call.kernels.forward(call.map, &p.gates(), from, to, begin, end);
  });
}

template <class A>
ParameterTensors run_backward(
    const Call& call, const Tensor& grad, const Tensor& x, const ParameterTensors& parameters, double eps, double gain) {
  const Parameters<A> p(parameters, call.map, eps, gain);
  const std::unique_ptr<A[]> sums(new A[2 * call.map.batch * call.map.channels]());
  if (call.work.numel() > 0) {
    const void *const from = x.const_data_ptr(), *const dy = grad.const_data_ptr();
    void* const to = call.work.mutable_data_ptr();
    call.in_parallel([&](int64_t begin, int64_t end) {
      call.kernels.backward(call.map, &p.gates(), from, dy, to, sums.get(), begin, end);
    });
  }
  return p.gradients(parameters, sums.get(), call.map);
}

Tensor forward(
    const Tensor& x,
    const Tensor& cweight,
    const Tensor& cbias,
    const Tensor& sweight,
    const Tensor& sbias,
    const Tensor& gn_weight,
    const Tensor& gn_bias,
    double eps,
    bool shuffle,
    double gain) {
  const ParameterTensors parameters{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  Call call(x, parameters, shuffle);
  if (x.numel() == 0) return call.out;
  const Tensor from = arranged(x, call.work);
  if (call.is_double()) {
    run_forward<double>(call, from, parameters, eps, gain);
  } else {
    run_forward<float>(call, from, parameters, eps, gain);
  }
  return call.finish();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad,
    const Tensor& x,
    const Tensor& cweight,
    const Tensor& cbias,
    const Tensor& sweight,
    const Tensor& sbias,
    const Tensor& gn_weight,
    const Tensor& gn_bias,
    double eps,
    bool shuffle,
    double gain) {
  const ParameterTensors parameters{cweight, cbias, sweight, sbias, gn_weight, gn_bias};
  Call call(x, parameters, shuffle);
  STD_TORCH_CHECK(grad.dim() == x.dim(), "the gradient must have the shape of x");
  for (int64_t i = 0; i < x.dim(); ++i) {
    STD_TORCH_CHECK(grad.size(i) == x.size(i), "the gradient must have the shape of x");
  }
  const Tensor from = arranged(x, call.work), dy = arranged(grad, call.work);
  const ParameterTensors p = call.is_double() ? run_backward<double>(call, dy, from, parameters, eps, gain)
                                              : run_backward<float>(call, dy, from, parameters, eps, gain);
  return {call.finish(), p[0], p[1], p[2], p[3], p[4], p[5]};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(shuffle_attention, CPU, m) {
  m.impl("shuffle_attention", TORCH_BOX(&forward));
  m.impl("shuffle_attention_backward", TORCH_BOX(&backward));
}

}  // namespace shuffle_attention
