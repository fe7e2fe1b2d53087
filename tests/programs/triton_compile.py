"""Compile the Triton kernels for a GPU that need not be there: compute capability 9.0."""

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from shuffle_attention.kernels.backends.triton import layer
from shuffle_attention.kernels.backends.triton import tail_gates as gates
from shuffle_attention.kernels.backends.triton import tail_planes as planes
from shuffle_attention.kernels.backends.triton import tail_rows as rows

MAPS = ("x", "u", "shortcut", "grad", "out", "dshortcut", "du")
NUMBERS = ("eps", "norm_eps", "values", "gain")
COUNTS = ("rows", "batch", "channels", "half", "units", "pixels", "chunks", "tiles", "length", "n")
TWO_WAYS = {"shuffle": True, "backward": True}
FORWARD = {"shuffle": True, "add": True, "relu": True}
SUMS = {"shuffle": True, "relu": True, "separate": True}
BACKWARD = {"shuffle": True, "relu": False}
IN_PLANES, IN_ROWS = {"MULTIPLE": 16, "ROWS": 1, "BLOCK": 4096}, {"PIXELS": 16, "CHANNELS": 64}
MERGED, POOLED = {"CHUNKS": 16, "CHANNELS": 64}, {"SAMPLES": 128, "CHANNELS": 8, "by_batch": True}
KERNELS = [
    (layer._planes, {"whole": True, "ROWS": 64, "BLOCK": 64, **TWO_WAYS}),
    (layer._planes, {"whole": False, "ROWS": 1, "BLOCK": 4096, **TWO_WAYS}),
    (layer._rows, {"PIXELS": 128, "CHANNELS": 32, **TWO_WAYS}),
    (planes.statistics_planes, IN_PLANES),
    (planes.output_planes, IN_PLANES | FORWARD),
    (planes.sums_planes, IN_PLANES | SUMS),
    (planes.gradient_planes, IN_PLANES | BACKWARD),
    (rows.statistics_rows, IN_ROWS),
    (rows.output_rows, IN_ROWS | FORWARD),
    (rows.sums_rows, IN_ROWS | SUMS),
    (rows.gradient_rows, IN_ROWS | BACKWARD),
    (gates.merge_statistics, MERGED),
    (gates.merge_sums, MERGED),
    (gates.pool_statistics, POOLED),
    (gates.pool_gradients, POOLED),
    (gates.attention_gradients, {"GROUPS": 32, "WIDTH": 16}),
]


def kind(name):
    return "*bf16" if name in MAPS else "fp32" if name in NUMBERS else "i32" if name in COUNTS else "*fp32"


for kernel, fixed in KERNELS:
    names = kernel.arg_names
    signature = {name: "constexpr" if name in fixed else kind(name) for name in names}
    constants = {(names.index(name),): value for name, value in fixed.items()}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name not in fixed and name in MAPS}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert "cubin" in compiled.asm
    if fixed.get("BLOCK") == 4096 and kernel is not layer._planes:
        assert "ld.global.v4" in compiled.asm["ptx"], kernel  # planes of a multiple of 16 pixels, 16 bytes at a time
print("compiled")
