"""ONNX, of standard operators only, run by ONNX Runtime."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .format import METADATA, Artefact, Format, described, free_sizes


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write one ONNX file with its weights inside and a free batch size, from ``images`` to ``output``."""
    program = torch.onnx.export(
        model,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["output"],
        dynamic_shapes=(free_sizes(dynamic_size),),
        verbose=False,
    )
    save(program.model_proto, path, metadata)  # pyright: ignore[reportOptionalMemberAccess]


def save(proto: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a model of ONNX with its metadata."""
    import onnx

    onnx.helper.set_model_props(proto, described(metadata, _content(proto)))
    onnx.save(proto, path)


def load(path: Path) -> Artefact:
    """Open a file of one input in ONNX Runtime on the CPU, with as many threads as PyTorch has now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise keep a core busy for a while after each run, which preprocessing needs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    shape = [size if isinstance(size, int) else None for size in images.shape]
    metadata = json.loads(session.get_modelmeta().custom_metadata_map.get(METADATA, "{}"))

    def run(batch: Tensor) -> Any:
        outputs = [torch.from_numpy(output) for output in session.run(None, {images.name: batch.numpy()})]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def content() -> list[bytes]:
        import onnx

        return _content(onnx.load(path))

    return Artefact(path, run, shape, metadata, content)


def _content(proto: Any) -> list[bytes]:
    return [proto.graph.SerializeToString(deterministic=True)]


FORMAT = Format("onnx", ".onnx", write, load, modules=("onnx", "onnxscript"), runtime=("onnxruntime",), extra="onnx")
