// How tensors stand in memory, and which kernels that suits.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>

#include "kernels.h"

namespace shuffle_attention {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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
  // Rows first: planes of one pixel are both, and have their vectors filled only as rows.
  std::array<int64_t, 5> rows{0, 2, 3, 4, 0};
  rows[t.dim() - 1] = 1;
  if (stands_in_order(t, rows)) return kRows;
  if (stands_in_order(t, {0, 1, 2, 3, 4})) return kPlanes;
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

// `t` itself where it stands in memory as `like` does, and a copy that does elsewhere.
inline Tensor arranged(const Tensor& t, const Tensor& like) {
  if (same_memory(t, like)) return t;
  Tensor copy = torch::stable::empty_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

}  // namespace shuffle_attention
