// Compiles the kernels for the instruction set of SIMD_TARGET; each isa_*.cpp includes this and nothing else.
#include "kernels.h"

#if defined(SIMD_TARGET) && defined(__x86_64__)
#include <immintrin.h>
#endif

// Include nothing of others after this point: an inline function compiled here for a larger instruction set could be
// kept by the linker and run on a processor without it.
#ifdef SIMD_TARGET
#define SIMD_PRAGMA_OF(text) _Pragma(#text)
#define SIMD_PRAGMA(text) SIMD_PRAGMA_OF(text)
#ifdef __clang__
SIMD_PRAGMA(clang attribute push(__attribute__((target(SIMD_TARGET))), apply_to = function))
#else
SIMD_PRAGMA(GCC target(SIMD_TARGET))
#endif
#endif

#if !defined(SIMD_TARGET) || defined(__x86_64__)
#include "table.h"
#define SIMD_TABLE &SIMD_NAMESPACE::table
#else
#define SIMD_TABLE nullptr
#endif

#if defined(SIMD_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif

namespace shuffle_attention {
#define SIMD_JOINED_OF(a, b) a##b
#define SIMD_JOINED(a, b) SIMD_JOINED_OF(a, b)
const KernelTable* SIMD_JOINED(SIMD_NAMESPACE, _kernels)() { return SIMD_TABLE; }
}  // namespace shuffle_attention
