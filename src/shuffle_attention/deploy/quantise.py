"""Quantise deployed files to 8-bit integers; statistics and gates of attention stay in floating point.

Convolutions and linear layers get weights of one scale per output channel, and inputs of one scale per map, from the
range of each map over calibration images. ONNX Runtime quantises ONNX files, and NNCF those of OpenVINO.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError, require_extra
from .api import find_format
from .format import METADATA, Format

Graph = Mapping[str, tuple[str, list[str]]]  # operator and sources of each node, by name; "" is an input of the graph
_STATISTICS = {"GlobalAveragePool", "GlobalMaxPool", "InstanceNormalization", "MVN", "AdaptiveAvgPool"}
_GATES, _PRODUCTS, _BATCH = {"Sigmoid", "HardSigmoid"}, {"Mul", "Multiply"}, 16


def gate_nodes(graph: Graph) -> set[str]:
    """Return the nodes of a graph that compute attention's gates, from statistics of a map to the product with it.

    A sigmoid is a gate if a product uses it, and if every path to it starts at a statistic: a mean, a maximum or a
    normalisation. The sigmoid of an activation function such as SiLU has paths from the input of the graph.
    """
    nodes: set[str] = set()
    for gate, (operator, _) in graph.items():
        products = {name for name, (op, sources) in graph.items() if op in _PRODUCTS and gate in sources}
        if operator not in _GATES or not products:
            continue
        path, ends = {gate}, [gate]
        while ends:
            for source in graph[ends.pop()][1]:
                if source not in path:
                    path.add(source)
                    statistic = source and (graph[source][0] in _STATISTICS or graph[source][0].startswith("Reduce"))
                    ends += [] if statistic or not source else [source]
        nodes |= set() if "" in path else path | products
    return nodes


def graph_of_onnx(proto: Any) -> Graph:
    """Return the graph of an ONNX model, without constants."""
    nodes = [node for node in proto.graph.node if node.op_type != "Constant"]
    producers = {output: node.name for node in nodes for output in node.output}
    inputs = {each.name: "" for each in proto.graph.input}
    sources = {**inputs, **producers}
    return {node.name: (node.op_type, [sources[each] for each in node.input if each in sources]) for node in nodes}


def quantise(path: str | os.PathLike, images: Tensor, output: str | os.PathLike) -> None:
    """Write a deployed file with weights and maps of 8-bit integers.

    Args:
        path: File in floating point, as :func:`.export` wrote it.
        images: Images (B, C, H, W) like those of its use, on which the range of each map is measured.
        output: File to write, of the same format.

    Raises:
        InputError: If files of this format cannot be quantised, or a module that this needs is missing.
    """
    path, output = Path(path), Path(output)
    require_quantiser(find_format(None, path))(path, images, output)


def require_quantiser(chosen: Format) -> Callable[[Path, Tensor, Path], None]:
    """Return the function that quantises files of a format; raise InputError if there is none or it lacks a module."""
    if chosen.name not in QUANTISERS:
        known = ", ".join(QUANTISERS)
        raise InputError(f"files of the format {chosen.name} cannot be quantised; those of {known} can be")
    function, modules = QUANTISERS[chosen.name]
    require_extra(*chosen.modules, *chosen.runtime, extra=chosen.extra)
    require_extra(*modules, extra="int8")
    return function


def _onnx(path: Path, images: Tensor, output: Path) -> None:
    """Quantise an ONNX file with ONNX Runtime."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    from .onnx import save

    proto = onnx.load(path)
    metadata = json.loads(next((each.value for each in proto.metadata_props if each.key == METADATA), "{}"))
    source = proto.graph.input[0].name

    class Reader(CalibrationDataReader):
        batches: Iterator[Any] = iter([{source: batch.numpy()} for batch in images.split(_BATCH)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    # Says that the graph has the shapes that ONNX Runtime's own preparation would add, and avoids its warning.
    onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})
    quantize_static(
        proto,
        output,
        Reader(),
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
        nodes_to_exclude=sorted(gate_nodes(graph_of_onnx(proto))),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    quantised = onnx.load(output)
    del quantised.metadata_props[:]
    save(quantised, output, {**metadata, "precision": "int8"})


def _openvino(path: Path, images: Tensor, output: Path) -> None:
    """Quantise an OpenVINO file with NNCF, and correct each layer's bias for the errors of the layers before it."""
    from .openvino import import_silently, metadata_of, save

    openvino, nncf = import_silently("openvino"), import_silently("nncf")
    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(path)
    nodes: dict[str, tuple[str, list[str]]] = {}
    for node in model.get_ordered_ops():
        sources = [value.get_node() for value in node.input_values()]
        names = {each.get_friendly_name(): each.get_type_name() for each in sources}
        kept = ["" if operator == "Parameter" else name for name, operator in names.items() if operator != "Constant"]
        nodes[node.get_friendly_name()] = node.get_type_name(), kept
    with contextlib.redirect_stdout(sys.stderr):  # where its progress bars belong
        quantised = nncf.quantize(
            model,
            nncf.Dataset([image.numpy() for image in images.split(1)]),
            subset_size=len(images),
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(names=sorted(gate_nodes(nodes))),
        )
    save(quantised, output, {**metadata_of(model), "precision": "int8"})


# By format: its function, and the modules that it imports besides those of the format.
QUANTISERS: dict[str, tuple[Callable[[Path, Tensor, Path], None], tuple[str, ...]]] = {
    "onnx": (_onnx, ()),
    "openvino": (_openvino, ("nncf",)),
}
