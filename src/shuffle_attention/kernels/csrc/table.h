// The kernels of one instruction set.
#pragma once

#include "planes.h"
#include "tail_planes.h"
#include "tail_rows.h"
#include "tiles.h"

namespace shuffle_attention {
namespace SIMD_NAMESPACE {

template <class T>
constexpr Kernels planes_of() {
  return {forward_planes<T>, backward_planes<T>, 1};
}

template <class T>
constexpr Kernels rows_of() {
  return {forward_rows<T>, backward_rows<T>, row_width<T>()};
}

template <class T>
constexpr TailKernels tail_planes_of() {
  using A = Accumulator<T>;
  return {statistics_planes<T>, find_gates<A>, output_planes<T>, gradient_sums_planes<T>, finish_sums<A>,
          find_gradient<A>, gradient_planes<T>, 1};
}

template <class T>
constexpr TailKernels tail_rows_of() {
  using A = Accumulator<T>;
  return {statistics_rows<T>, find_gates<A>, output_rows<T>, gradient_sums_rows<T>, finish_sums<A>,
          find_gradient<A>, gradient_rows<T>, Lanes<A>::count};
}

constexpr KernelTable table = {
    {
        {planes_of<float>(), planes_of<double>(), planes_of<BFloat16>(), planes_of<Half>()},
        {rows_of<float>(), rows_of<double>(), rows_of<BFloat16>(), rows_of<Half>()},
    },
    {
        {tail_planes_of<float>(), tail_planes_of<double>(), tail_planes_of<BFloat16>(), tail_planes_of<Half>()},
        {tail_rows_of<float>(), tail_rows_of<double>(), tail_rows_of<BFloat16>(), tail_rows_of<Half>()},
    },
};

}  // namespace SIMD_NAMESPACE
}  // namespace shuffle_attention
