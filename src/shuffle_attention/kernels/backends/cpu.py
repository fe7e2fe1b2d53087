"""The CPU kernels: a C++ library that registers its kernels with PyTorch's dispatcher as it is loaded."""

import logging
from pathlib import Path

import torch
from torch import Tensor

LIBRARY = Path(__file__).parents[1] / "_C.so"
loaded = False


def register(library: torch.library.Library) -> None:
    """Load the kernels; without them the ops compute their reference.

    If the library exists but fails to load, the error is raised rather than hidden by the slow fallback.

    Raises:
        OSError: If the library cannot be loaded.
    """
    global loaded
    loaded = LIBRARY.exists()
    if loaded:
        torch.ops.load_library(LIBRARY)
    else:
        logging.getLogger(__name__).warning(
            "the CPU kernels were not built when shuffle-attention was installed (a C++ compiler is needed); "
            "the layer runs on PyTorch's own operations, more slowly"
        )


def supports(x: Tensor, whole: bool = True) -> bool:
    """Return whether the kernels serve a map: any on the CPU, if they were built, and any block tail."""
    return loaded and x.device.type == "cpu"
