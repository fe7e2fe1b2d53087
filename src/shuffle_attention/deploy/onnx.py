"""ONNX, of standard operators only, run by ONNX Runtime."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .format import Format


def write(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write one ONNX file with its weights inside and a free batch size, from ``images`` to ``output``."""
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        external_data=False,
        input_names=["images"],
        output_names=["output"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )


def load(path: Path) -> Callable[[Tensor], Tensor]:
    """Return a function that runs the file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


FORMAT = Format("onnx", ".onnx", write, load, modules=("onnx", "onnxscript", "onnxruntime"), extra="onnx")
