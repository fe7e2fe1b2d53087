"""Triton kernels for CUDA. Triton is imported when a kernel first runs."""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from ...schema import REFERENCES

HAS_TRITON = importlib.util.find_spec("triton") is not None  # PyTorch brings it for CUDA, except on Windows


def register(library: torch.library.Library, key: str = "CUDA") -> None:
    """Register the kernels for a dispatch key, if Triton is installed."""
    if HAS_TRITON:
        for name in REFERENCES:
            library.impl(name, functools.partial(_run, name), key)


def supports(x: Tensor, whole: bool = True) -> bool:
    """Return whether the kernels serve a map.

    float64, a block tail without BatchNorm or attention, and GPUs before Volta run on the reference.
    """
    return whole and HAS_TRITON and x.device.type == "cuda" and _compiles(x)


def _compiles(x: Tensor) -> bool:
    if x.dtype == torch.float64:
        return False
    # The compiler of PyTorch refuses older GPUs itself; a CPU is Triton's interpreter.
    return x.device.type == "cpu" or torch.compiler.is_compiling() or _capability(x.device) >= (7, 0)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _run(name: str, *inputs: Any) -> Any:
    x = inputs[1] if name.endswith("backward") else inputs[0]
    for value in inputs:
        if isinstance(value, Tensor) and value.device != x.device:
            raise RuntimeError(f"{name}: the map is on {x.device}, but a tensor is on {value.device}")
    part = 4 if name.endswith("backward") else 2  # BatchNorm's weight and the attention's first parameter may be absent
    whole = "tail" not in name or not (inputs[part] is None or inputs[part + 4] is None)
    if x.numel() == 0 or not whole or not _compiles(x):
        return REFERENCES[name](*inputs)
    from . import launch

    with torch.cuda.device_of(x):  # Triton launches on the current device
        return getattr(launch, name)(*inputs)
