// The six parameters: spread over the channels for the kernels, and their gradients from the kernels' sums.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "kernels.h"

namespace shuffle_attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum Parameter { kChannelWeight, kChannelBias, kSpatialWeight, kSpatialBias, kNormWeight, kNormBias };
using ParameterTensors = std::array<Tensor, 6>;
using Option = std::optional<Tensor>;

template <class A>
constexpr ScalarType scalar_type = sizeof(A) == sizeof(double) ? ScalarType::Double : ScalarType::Float;

template <class A>
std::vector<A> values_of(const Tensor& t) {
  const Tensor flat = t.is_contiguous() ? t : torch::stable::contiguous(t);
  const auto all = [&](const auto* values) { return std::vector<A>(values, values + t.numel()); };
  if (t.scalar_type() == ScalarType::Float) return all(flat.template const_data_ptr<float>());
  if (t.scalar_type() == ScalarType::Double) return all(flat.template const_data_ptr<double>());
  return values_of<A>(torch::stable::to(flat, scalar_type<A>));
}

// A tensor like `like`, rounded to its type.
template <class A>
Tensor rounded(const Tensor& like, const A* values) {
  Tensor out = torch::stable::empty_like(like);
  const bool direct = out.scalar_type() == scalar_type<A> && out.is_contiguous();
  Tensor typed = direct ? out : torch::stable::new_empty(like, like.sizes(), scalar_type<A>);
  std::copy(values, values + like.numel(), typed.template mutable_data_ptr<A>());
  if (!direct) torch::stable::copy_(out, typed);
  return out;
}

template <class A>
class Parameters {
 public:
  Parameters(const ParameterTensors& tensors, const Map& map, double eps, double gain)
      : tensors_(tensors), n_(tensors[0].numel()) {
    STD_TORCH_CHECK(gain > 0 && std::isfinite(gain), "gain must be positive and finite, got ", gain);
    for (int p = 0; p < 6; ++p) values_[p] = values_of<A>(tensors[p]);
    spread(map);
    const A* const s = spread_.data();
    gates_ = {s, s + map.channels, s + 2 * map.channels, s + 3 * map.channels, static_cast<A>(eps),
              static_cast<A>(std::log2(gain)), static_cast<A>(1 / gain), n_};
  }
  Parameters(const Parameters&) = delete;
  Parameters& operator=(const Parameters&) = delete;

  const Gates<A>& gates() const { return gates_; }

  // The gradients, from the gate sums (batch, 2, channels), added in an order that does not depend on threads.
  ParameterTensors gradients(const A* sums, const Map& map) const {
    std::vector<double> over_batch(2 * map.channels), over_groups(4 * n_);
    for (int64_t image = 0; image < map.batch; ++image) {
      for (int64_t c = 0; c < 2 * map.channels; ++c) over_batch[c] += sums[image * 2 * map.channels + c];
    }
    for (int64_t part = 0; part < 2; ++part) {
      for (int64_t c = 0; c < map.channels; c += 2 * n_) {
        for (int64_t r = 0; r < 2 * n_; ++r) over_groups[part * 2 * n_ + r] += over_batch[part * map.channels + c + r];
      }
    }
    std::array<std::vector<A>, 6> grads;
    for (auto& grad : grads) grad.resize(n_);
    for (int64_t j = 0; j < n_; ++j) {
      const double shift = over_groups[n_ + j], scale = over_groups[3 * n_ + j];
      grads[kChannelWeight][j] = over_groups[2 * n_ + j];
      grads[kChannelBias][j] = over_groups[j];
      grads[kSpatialWeight][j] = values_[kNormWeight][j] * scale + values_[kNormBias][j] * shift;
      grads[kSpatialBias][j] = shift;
      grads[kNormWeight][j] = values_[kSpatialWeight][j] * scale;
      grads[kNormBias][j] = values_[kSpatialWeight][j] * shift;
    }
    ParameterTensors out;
    for (int p = 0; p < 6; ++p) out[p] = rounded(tensors_[p], grads[p].data());
    return out;
  }

 private:
  void spread(const Map& map) {
    const int64_t channels = map.channels;
    spread_.assign(4 * channels, 0);
    A *const alpha = spread_.data(), *const cweight = alpha + channels, *const beta = cweight + channels,
             *const spatial = beta + channels;
    for (int64_t j = 0; j < n_; ++j) {
      cweight[j] = values_[kChannelWeight][j];
      beta[j] = values_[kChannelBias][j];
      alpha[n_ + j] = values_[kSpatialWeight][j] * values_[kNormWeight][j];
      beta[n_ + j] = values_[kSpatialWeight][j] * values_[kNormBias][j] + values_[kSpatialBias][j];
      spatial[n_ + j] = 1;
    }
    for (A* values : {alpha, cweight, beta, spatial}) {
      // Every group is like the first.
      for (int64_t c = 2 * n_; c < channels; c += 2 * n_) std::copy(values, values + 2 * n_, values + c);
    }
  }

  const ParameterTensors& tensors_;
  int64_t n_;
  std::array<std::vector<A>, 6> values_;
  std::vector<A> spread_;
  Gates<A> gates_;
};

}  // namespace shuffle_attention
