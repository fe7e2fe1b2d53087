"""TorchScript, which LibTorch runs in C++ without Python."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import METADATA, Artefact, Format, described


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write a traced model. Its sizes stay free where the model does not turn them into numbers."""
    traced = torch.jit.trace(model, (example,), check_trace=False)
    sizes = [None, example.shape[1], *([None, None] if dynamic_size else example.shape[2:])]
    extra = {**described(metadata, _content(traced)), _SHAPE: json.dumps(sizes)}
    torch.jit.save(traced, path, _extra_files=extra)


def load(path: Path) -> Artefact:
    """Open a traced model of one input."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise InputError(f"its part {damaged} is damaged; copy it again")
    extra: dict[str, Any] = {METADATA: "", _SHAPE: ""}
    module: Any = torch.jit.load(path, map_location="cpu", _extra_files=extra).eval()
    shape, metadata = (json.loads(extra[name] or "null") for name in (_SHAPE, METADATA))
    # As a child of the artefact it would be told its mode, which it does not have.
    return Artefact(path, lambda images: module(images), shape, metadata, lambda: _content(module))


def _content(module: Any) -> list[Tensor]:
    return [tensor for _, tensor in sorted(module.state_dict().items())]


_SHAPE = "shape"  # of the input, which TorchScript itself does not record
FORMAT = Format("torchscript", ".torchscript", write, load)
