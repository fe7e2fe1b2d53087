"""The Triton kernels: in Triton's interpreter against the reference, and compiled for GPUs that are not here.

Both need a process of their own, since a kernel is interpreted or compiled as the environment says when it is made.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

INTERPRETED = """
import torch
from test_layer import CASES, LAYOUTS, parameters, random_layer, random_map
from shuffle_attention.ops import reference, triton_kernels

CASES = {**CASES, "many-tiles": ((1, 8, 83, 57), 2), "many-channels": ((2, 136, 5, 5), 17)}
checked = 0
for case, (shape, groups) in CASES.items():
    for layout in LAYOUTS:
        if (layout == "channels-last" and len(shape) == 3) or (layout == "expanded" and shape[0] == 0):
            continue
        for shuffle in (True, False):
            for dtype, tolerance in ((torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)):
                if dtype != torch.float32 and layout not in ("contiguous", "channels-last"):
                    continue  # other layouts are brought into one of these
                exact = [p.detach() for p in parameters(random_layer(shape[1], groups))]
                rounded = [p.float() for p in exact]
                x, grad = random_map(shape, dtype, layout), random_map(shape, dtype).flip(0)
                y = triton_kernels.forward(x, *rounded, 1e-5, shuffle)
                found = y, *triton_kernels.backward(grad, x, *rounded, 1e-5, shuffle)
                arguments = (x.double(), *exact, 1e-5, shuffle)
                expected = (
                    reference.shuffle_attention(*arguments),
                    *reference.shuffle_attention_backward(grad.double(), *arguments),
                )
                for a, b in zip(found, expected, strict=True):
                    assert a.dtype == (dtype if a.shape == shape else torch.float32)
                    worst = (a.double() - b).abs().max().item() if b.numel() else 0.0
                    # A gradient of a parameter is a sum in which much cancels.
                    assert worst <= 5 * tolerance * max(1.0, b.abs().max().item() if b.numel() else 0), (
                        case, layout, shuffle, dtype, worst)
                for map in (y, found[1]):
                    assert map.stride() == torch.empty_like(x).stride(), (case, layout)
                checked += 1
large = random_map((2, 8, 96, 97), torch.float32) + 1e4
weights = [p.detach().float() for p in parameters(random_layer(8, 2))]
for x in (large, large.to(memory_format=torch.channels_last)):
    exact = reference.shuffle_attention(x.double(), *(w.double() for w in weights), 1e-5, True)
    error = (triton_kernels.forward(x, *weights, 1e-5, True).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-3, error
print("checked", checked)
"""

COMPILED = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from shuffle_attention.ops import triton_kernels

TYPES = {"sums": "*fp32", "parameters": "*fp32", "eps": "fp32"}
PLANES = {"whole": True, "ROWS": 64, "BLOCK": 64}
LARGE_PLANES = {"whole": False, "ROWS": 1, "BLOCK": 4096}
ROWS = {"PIXELS": 128, "CHANNELS": 32}
for kernel, sizes in (
    (triton_kernels._planes, PLANES), (triton_kernels._planes, LARGE_PLANES), (triton_kernels._rows, ROWS)
):
    for backward in (False, True):
        fixed = {**sizes, "shuffle": True, "backward": backward}
        maps = dict.fromkeys(("x", "grad", "out"), "*bf16")
        signature = {
            name: "constexpr" if name in fixed else (TYPES | maps).get(name, "i32") for name in kernel.arg_names
        }
        constants = {(kernel.arg_names.index(name),): value for name, value in fixed.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        assert "cubin" in compile(source, target=GPUTarget("cuda", 90, 32)).asm
print("compiled")
"""


def run(code: str, **environment: str) -> str:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interpreted_they_are_the_reference_over_the_table_of_cases():
    assert int(run(INTERPRETED, TRITON_INTERPRET="1").split()[-1]) > 150


def test_they_compile_for_hopper(tmp_path):
    assert "compiled" in run(COMPILED, TRITON_CACHE_DIR=str(tmp_path))
