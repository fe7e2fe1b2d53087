// Which instruction set serves this processor.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace shuffle_attention {

namespace {

// ATEN_CPU_CAPABILITY is the variable that holds PyTorch's own kernels to a lower set.
bool allowed(const char* capability) {
  const char* const most = std::getenv("ATEN_CPU_CAPABILITY");
  if (!most || std::strcmp(most, "avx512") == 0) return true;
  return std::strcmp(most, "default") != 0 && std::strcmp(most, capability) == 0;
}

const KernelTable* choose() {
#ifdef __x86_64__
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && allowed("avx512")) return avx512_kernels();
  if (avx2 && allowed("avx2")) return avx2_kernels();
#endif
  return generic_kernels();
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable* const table = choose();
  return *table;
}

}  // namespace shuffle_attention
