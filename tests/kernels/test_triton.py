"""The Triton kernels: in Triton's interpreter, and compiled for GPUs that are not here.

Each is a process, since the environment decides at import whether a kernel is interpreted or compiled.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shuffle_attention.kernels.backends import triton

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
TESTS = Path(__file__).parents[1]


def run(program: str, **environment: str) -> str:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, TESTS / "programs" / program],
        env={**os.environ, **environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_interpreted_layer_equals_the_reference_over_the_table_of_cases():
    assert int(run("triton_layer.py", TRITON_INTERPRET="1").split()[-1]) == 52


def test_interpreted_block_tail_equals_the_modules_in_every_setting():
    assert int(run("triton_block_tail.py", TRITON_INTERPRET="1").split()[-1]) == 36


def test_they_compile_for_hopper(tmp_path):
    assert "compiled" in run("triton_compile.py", TRITON_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    ("capability", "dtype", "served"),
    [
        ((9, 0), torch.bfloat16, True),
        ((7, 0), torch.float32, True),
        ((6, 1), torch.float32, False),
        ((9, 0), torch.float64, False),
    ],
)
def test_they_serve_gpus_that_triton_compiles_for(capability, dtype: torch.dtype, served: bool, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    triton._capability.cache_clear()
    assert triton.supports(SimpleNamespace(dtype=dtype, device=torch.device("cuda:0"))) == served  # type: ignore[arg-type]
    triton._capability.cache_clear()
