"""The .pt2 files of ``torch.export``, which any PyTorch loads without this package."""

import io
import json
import operator
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import METADATA, Artefact, Format, described, free_sizes


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write an exported program with a free batch size."""
    free = (dict.fromkeys(free_sizes(dynamic_size), torch.export.Dim.DYNAMIC),)
    # Without this, PyTorch 2.11 exports max pooling for odd or for even sizes only; later releases divide like this.
    with mock.patch("torch._meta_registrations.div_rtn", operator.floordiv, create=True):
        program = torch.export.export(model, (example,), dynamic_shapes=free)
    torch.export.save(program, path, extra_files=described(metadata, _content(program)))


def load(path: Path) -> Artefact:
    """Open an exported program of one input, after checking that loading it runs no code from the file."""
    _require_harmless(path)
    extra: dict[str, Any] = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    (shape,) = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    module: Any = program.module()
    sizes = [size if isinstance(size, int) else None for size in shape]
    # As a child of the artefact it would be told its mode, which it does not have.
    return Artefact(
        path, lambda images: module(images), sizes, json.loads(extra[METADATA] or "{}"), lambda: _content(program)
    )


def _require_harmless(path: Path) -> None:
    """Raise InputError if a file is damaged, or has pickles of other objects than tensors, or compiled code."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise InputError(f"its part {damaged} is damaged; copy it again")
        for name in archive.namelist():
            entries: Any = []
            if name.endswith("_config.json"):
                entries = json.loads(archive.read(name)).get("config", {}).values()
            pickled = any(entry["use_pickle"] or "obj" in entry["path_name"] for entry in entries)
            if pickled or "aotinductor" in name or name.endswith((".so", ".pkl")):
                raise InputError(f"its part {name} may hold code, which is not run")
            if name.endswith(".pt") and archive.getinfo(name).file_size:
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)


def _content(program: Any) -> list[Tensor]:
    tensors = {**program.state_dict, **program.constants}
    return [tensors[name] for name in sorted(tensors) if isinstance(tensors[name], Tensor)]


FORMAT = Format("torch", ".pt2", write, load)
