"""The .pt2 files of ``torch.export``, which any PyTorch loads without this package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .format import Format


def write(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write an exported program with a free batch size."""
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the exported program as a function of the images."""
    program: Any = torch.export.load(path).module()
    return program


FORMAT = Format("torch", ".pt2", write, load)
