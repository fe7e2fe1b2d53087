"""Compile the Triton kernels for a GPU that need not be there: compute capability 9.0."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from shuffle_attention.kernels.backends.triton import formulas, passes

MAPS = ("x", "u", "shortcut", "grad", "out", "dshortcut", "du")
NUMBERS = ("eps", "norm_eps", "values", "gain")
COUNTS = ("planes", "batch", "channels", "half", "units", "pixels", "chunks", "tiles", "length", "n")
FORWARD = {"shuffle": True, "add": True, "relu": True}
SUMS = {"shuffle": True, "relu": True, "separate": True}
BACKWARD = {"shuffle": True, "relu": False}
NCHW = {"NHWC": False, "MULTIPLE": 16, "GROUP": 1, "BLOCK": 4096, "STAGES": 1}
NHWC = {"NHWC": True, "MULTIPLE": 1, "GROUP": 64, "BLOCK": 8, "STAGES": 3}
MERGED, POOLED = {"CHUNKS": 16, "CHANNELS": 64}, {"SAMPLES": 128, "CHANNELS": 8, "by_batch": True}
KERNELS = [
    *(
        (passes.layer, layout | {"shuffle": True, "backward": way, "whole": whole})
        for layout in (NCHW, NHWC)
        for way in (False, True)
        for whole in (False, True)
    ),
    *((passes.statistics, layout) for layout in (NCHW, NHWC)),
    *((passes.output, layout | FORWARD) for layout in (NCHW, NHWC)),
    *((passes.gradient_sums, layout | SUMS) for layout in (NCHW, NHWC)),
    *((passes.gradient, layout | BACKWARD) for layout in (NCHW, NHWC)),
    (formulas.merge_statistics, MERGED),
    (formulas.merge_sums, MERGED),
    (formulas.pool_statistics, POOLED),
    (formulas.pool_gradients, POOLED),
    (formulas.attention_gradients, {"GROUPS": 32, "WIDTH": 16}),
]


def kind(name):
    return "*bf16" if name in MAPS else "fp32" if name in NUMBERS else "i32" if name in COUNTS else "*fp32"


for kernel, fixed in KERNELS:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else kind(name) for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    multiples = [
        name for name in names if name not in fixed and name in (*MAPS, "half")
    ]  # of 16, in bytes and channels
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in multiples}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert "cubin" in compiled.asm
    if fixed.get("NHWC") is False:
        assert "ld.global.v4" in compiled.asm["ptx"], kernel  # planes of a multiple of 16 pixels, 16 bytes at a time
    elif fixed.get("NHWC"):
        assert "cp.async" in compiled.asm["ptx"], kernel  # the next tiles are on their way while one is computed
print("compiled")
