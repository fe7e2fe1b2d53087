"""OpenVINO: a graph in XML, and its weights in a file of the same name that ends in .bin."""

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import METADATA, Artefact, Format, described


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write the two files, with weights in float32, from ``images`` to ``output``."""
    openvino = import_silently("openvino")
    free = [-1, example.shape[1], *([-1, -1] if dynamic_size else example.shape[2:])]
    # Traced, since the converter of exported programs takes normalisation apart.
    traced = torch.jit.trace(model, (example,), check_trace=False)
    graph = openvino.convert_model(traced, input=[openvino.PartialShape(free)], example_input=example)
    graph.inputs[0].tensor.set_names({"images"})
    graph.outputs[0].tensor.set_names({"output"})
    save(graph, path, metadata)


def save(graph: Any, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a graph of OpenVINO with its metadata."""
    openvino = import_silently("openvino")
    openvino.save_model(graph, path, compress_to_fp16=False)
    for name, text in described(metadata, _content(path)).items():
        graph.set_rt_info(text, name)
    openvino.save_model(graph, path, compress_to_fp16=False)


def load(path: Path) -> Artefact:
    """Open a graph of one input in OpenVINO on the CPU, in float32 and with as many threads as PyTorch has now."""
    if not path.with_suffix(".bin").is_file():
        raise InputError(f"its weights, {path.with_suffix('.bin').name}, are missing beside it; move both files")
    core = import_silently("openvino").Core()
    graph = core.read_model(path)
    (images,) = graph.inputs
    shape = [size.get_length() if size.is_static else None for size in images.partial_shape]
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # processors with AMX would round to bfloat16
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(graph, "CPU", settings).create_infer_request()

    def run(batch: Tensor) -> Any:
        results = request.infer([batch.contiguous().numpy()], share_inputs=True)
        outputs = [torch.from_numpy(results[index].copy()) for index in range(len(results))]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    artefact = Artefact(path, run, shape, metadata_of(graph), lambda: _content(path))
    if artefact.unaltered is False:
        raise InputError(f"its weights, {path.with_suffix('.bin').name}, are not those that it was written with")
    return artefact


def metadata_of(graph: Any) -> dict[str, Any]:
    """Return the metadata in a graph of OpenVINO; empty if another program wrote it."""
    return json.loads(graph.get_rt_info([METADATA]).astype(str)) if graph.has_rt_info([METADATA]) else {}


def import_silently(name: str) -> Any:
    """Import a module that uses OpenVINO without ``openvino_telemetry``, which reports imports and conversions.

    Without it, OpenVINO and NNCF use a substitute that reports nothing. A module that was imported before stays as it
    is.
    """
    missing = object()
    before = sys.modules.get("openvino_telemetry", missing)
    sys.modules["openvino_telemetry"] = None  # pyright: ignore[reportArgumentType] - its import then fails
    try:
        return importlib.import_module(name)
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not missing:
            sys.modules["openvino_telemetry"] = before  # pyright: ignore[reportArgumentType]


def _content(path: Path) -> list[bytes]:
    return [path.with_suffix(".bin").read_bytes()]


FORMAT = Format("openvino", ".xml", write, load, modules=("openvino",), runtime=("openvino",), extra="openvino")
