"""The .pt2 files of ``torch.export``, which any PyTorch loads without this package."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .format import METADATA, Artefact, Format, described


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write an exported program with a free batch size."""
    free = {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}
    sizes = ({axis: torch.export.Dim(name) for axis, name in free.items()},)
    program = torch.export.export(model, (example,), dynamic_shapes=sizes)
    torch.export.save(program, path, extra_files={METADATA: described(metadata, _content(program))})


def load(path: Path) -> Artefact:
    """Open an exported program of one input."""
    extra: dict[str, Any] = {METADATA: ""}
    program = torch.export.load(path, extra_files=extra)
    (shape,) = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    run: Any = program.module().forward  # as a submodule it would refuse eval()
    sizes = [size if isinstance(size, int) else None for size in shape]
    return Artefact(path, run, sizes, json.loads(extra[METADATA] or "{}"), lambda: _content(program))


def _content(program: Any) -> list[Tensor]:
    tensors = {**program.state_dict, **program.constants}
    return [tensors[name] for name in sorted(tensors) if isinstance(tensors[name], Tensor)]


FORMAT = Format("torch", ".pt2", write, load)
