"""Core ML, which only a Mac or an iPhone runs: its files are written anywhere, and compared with PyTorch on a Mac."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import METADATA, Artefact, Format, described

_BATCH = 64  # Core ML wants bounds; an Artefact runs larger batches in parts.


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write an ML program in float32 for at most 64 images, of free size up to that of the example."""
    import coremltools

    sizes: list[Any] = [coremltools.RangeDim(1, _BATCH, len(example)), *example.shape[1:]]
    if dynamic_size:
        sizes[2:] = (coremltools.RangeDim(1, size, size) for size in example.shape[2:])
    program: Any = coremltools.convert(
        torch.jit.trace(model, (example,), check_trace=False),
        inputs=[coremltools.TensorType(name="images", shape=tuple(sizes))],
        outputs=[coremltools.TensorType(name="output")],
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    free = [None, example.shape[1], *([None, None] if dynamic_size else example.shape[2:])]
    texts: Any = {**described(metadata), _SHAPE: json.dumps(free)}
    program.user_defined_metadata.update(texts)
    program.save(str(path))


def load(path: Path) -> Artefact:
    """Open a package of one input in Core ML.

    Raises:
        InputError: If this is not a Mac.
    """
    if not FORMAT.runs_here:
        raise InputError("only a Mac can run it; ONNX, OpenVINO and TorchScript files run here")
    import coremltools

    program = coremltools.models.MLModel(str(path))
    texts = program.user_defined_metadata
    shape, metadata = (json.loads(texts[name]) if name in texts else None for name in (_SHAPE, METADATA))

    def run(batch: Tensor) -> Any:
        parts = [program.predict({"images": part.numpy()})["output"] for part in batch.contiguous().split(_BATCH)]
        return torch.cat([torch.from_numpy(part) for part in parts])

    return Artefact(path, run, shape, metadata)


_SHAPE = "shape"  # of the input
FORMAT = Format(
    "coreml",
    ".mlpackage",
    write,
    load,
    modules=("coremltools",),
    runtime=("coremltools",),
    extra="coreml",
    runs_here=sys.platform == "darwin",
)
