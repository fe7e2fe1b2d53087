// BatchNorm in the block tail: its statistics pooled from those of planes, and its gradients.
#pragma once

#include <cmath>

#include "plan.h"

namespace shuffle_attention {

struct NormTensors {
  const Option &weight, &bias, &mean, &var;  // without a weight there is no BatchNorm: z = u
  double eps;

  bool by_batch() const { return weight && !(mean && var); }
};

template <class A>
class Norm {
 public:
  Norm(const NormTensors& tensors, const Plan& plan)
      : by_batch(tensors.by_batch()), plan_(plan), eps_(tensors.weight ? tensors.eps : 0),
        rows_(kRows * plan.map.channels), mean_(of_channels(tensors.mean, 0)), var_(of_channels(tensors.var, 1)),
        weight_(of_channels(tensors.weight, 1)), bias_(of_channels(tensors.bias, 0)) {
    if (!by_batch) spread(0, plan.map.channels);
  }

  const bool by_batch;

  Channels<A> channels(const Gates<A>& gates) const {
    const auto at = [&](int r) { return rows_.data() + r * plan_.map.channels; };
    return {gates, at(kCentre), at(kScale), at(kShift), at(kByBias), at(kByWeight)};
  }

  // The statistics of the batch from those of the planes, about the means.
  void pool(const A* statistics) {
    plan_.for_channels([&](int64_t begin, int64_t end) { pool(statistics, begin, end); });
  }
  void pool(const A* statistics, int64_t begin, int64_t end) {
    const int64_t channels = plan_.map.channels, batch = plan_.map.batch;
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
  }

  // The mean and the variance: exactly what the map is normalised with.
  void write_moments(double* out) const {
    std::copy(mean_.begin(), mean_.end(), out);
    std::copy(var_.begin(), var_.end(), out + plan_.map.channels);
  }
  void read_moments(const double* moments) {
    std::copy_n(moments, plan_.map.channels, mean_.begin());
    std::copy_n(moments + plan_.map.channels, plan_.map.channels, var_.begin());
    spread(0, plan_.map.channels);
  }

  // The gradients of weight and bias from the sums of all planes; what goes through the statistics is kept.
  void differentiate(const A* sums, A* dweight, A* dbias) {
    plan_.for_channels([&](int64_t begin, int64_t end) { differentiate(sums, dweight, dbias, begin, end); });
  }
  void differentiate(const A* sums, A* dweight, A* dbias, int64_t begin, int64_t end) {
    const int64_t channels = plan_.map.channels;
    const double values = double(plan_.map.batch) * plan_.map.plane;
    std::vector<double> shift(end - begin), scale(end - begin);
    for (int64_t b = 0; b < plan_.map.batch; ++b) {
      const A* const of = sums + b * kNormSums * channels;
      for (int64_t c = begin; c < end; ++c) {
        shift[c - begin] += of[kSumDz * channels + c];
        scale[c - begin] += of[kSumDzDistance * channels + c];
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      const double invstd = 1 / std::sqrt(var_[c] + eps_), rest = mean_[c] - row(kCentre)[c];
      const double by_bias = shift[c - begin], by_weight = (scale[c - begin] - rest * by_bias) * invstd;
      dbias[c] = by_bias;
      dweight[c] = by_weight;
      const double each = by_batch ? row(kScale)[c] / values : 0;
      row(kByBias)[c] = each * (by_bias - rest * invstd * by_weight);
      row(kByWeight)[c] = each * invstd * by_weight;
    }
  }

 private:
  enum Row { kCentre, kScale, kShift, kByBias, kByWeight, kRows };
  A* row(Row r) { return rows_.data() + r * plan_.map.channels; }

  std::vector<double> of_channels(const Option& t, double otherwise) const {
    const int64_t count = plan_.map.channels;
    if (!t) return std::vector<double>(count, otherwise);
    STD_TORCH_CHECK(
        t->numel() == count, "BatchNorm must have as many values as channels, got ", t->numel(), " for ", count);
    return values_of<double>(*t);
  }

  void spread(int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const double scale = weight_[c] / std::sqrt(var_[c] + eps_);
      row(kCentre)[c] = mean_[c];
      row(kScale)[c] = scale;
      row(kShift)[c] = bias_[c] - scale * (mean_[c] - row(kCentre)[c]);
    }
  }

  const Plan& plan_;
  double eps_;
  std::vector<A> rows_;
  std::vector<double> mean_, var_, weight_, bias_;
};

}  // namespace shuffle_attention
