// The kernels for any processor: SSE2 on x86-64, NEON on arm64.
#include "kernels.h"

namespace shuffle_attention {
namespace generic {
#define SIMD_BYTES 16
#include "simd.h"
#include "arithmetic.h"
#include "planes.h"
#include "rows.h"
#include "tiles.h"
#include "tail_gates.h"
#include "tail_planes.h"
#include "tail_rows.h"
#include "table.h"
}  // namespace generic

const KernelTable* generic_kernels() {
  return &generic::table;
}
}  // namespace shuffle_attention
