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
    """Return whether the kernels serve a map: float64, and a block tail without a part, run on the reference."""
    return whole and HAS_TRITON and x.device.type == "cuda" and x.dtype != torch.float64


def _run(name: str, *inputs: Any) -> Any:
    x = inputs[1] if name.endswith("backward") else inputs[0]
    part = 2 if name == "block_tail" else 4  # BatchNorm's weight and the attention's first parameter may be absent
    whole = "tail" not in name or not (inputs[part] is None or inputs[part + 4] is None)
    if x.dtype == torch.float64 or x.numel() == 0 or not whole:
        return REFERENCES[name](*inputs)
    from . import launch

    return getattr(launch, name)(*inputs)
