// BatchNorm's part of a residual block's end: its statistics pooled from those of planes, its gradients.
#pragma once

#include <cmath>

#include "plan.h"

namespace shuffle_attention {

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

}  // namespace shuffle_attention
