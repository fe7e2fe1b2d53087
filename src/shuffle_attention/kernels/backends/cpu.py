"""Which kernels there are to take the place of the reference in PyTorch's dispatcher; loads those for CPUs."""

import importlib.util
import logging
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "_C.so"
HAS_TRITON = importlib.util.find_spec("triton") is not None  # PyTorch comes with it for CUDA, save on Windows


def load_kernels() -> bool:
    """Returns whether the kernels were there; the ops that they serve must be defined before.

    Without them the ops compute what their reference does. A library that is there and cannot be
    loaded is an error, PyTorch's own: it would otherwise hide behind a slow program.

    Raises:
        OSError: If the library cannot be loaded.
    """
    if not LIBRARY.exists():
        logging.getLogger(__name__).warning(
            "the CPU kernels were not built when shuffle-attention was installed (a C++ compiler is needed); "
            "the layer runs on PyTorch's own operations, more slowly"
        )
        return False
    torch.ops.load_library(LIBRARY)
    return True
