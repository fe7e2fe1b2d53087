"""ExecuTorch, for phones and small devices: XNNPACK computes the whole network."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .format import METADATA, Artefact, Format, described

_BATCH = 8  # The runtime reserves memory for the largest batch; an Artefact runs larger ones in parts.


def write(model: nn.Module, example: Tensor, path: Path, metadata: Mapping[str, Any], dynamic_size: bool) -> None:
    """Write a program for batches of at most 8 images.

    Raises:
        InputError: If the size shall be free, which XNNPACK writes and does not run.
    """
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import ExecutorchBackendConfig, to_edge_transform_and_lower
    from executorch.exir.passes.constant_prop_pass import constant_prop_pass
    from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass

    if dynamic_size:
        raise InputError("XNNPACK runs one height and width; write a file for each size")
    free = ({0: torch.export.Dim.DYNAMIC(max=_BATCH)},)
    program = torch.export.export(model, (example,), dynamic_shapes=free)
    # XNNPACK has no instance normalisation, and a graph of several parts would be copied between them.
    program = program.run_decompositions({torch.ops.aten.instance_norm.default: _instance_norm})
    program = constant_prop_pass(program)
    texts = {**described(metadata), _SHAPE: json.dumps([None, *example.shape[1:]])}
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], constant_methods=texts)
    # The default pass forgets the bounds.
    config = ExecutorchBackendConfig(sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass())
    path.write_bytes(edge.to_executorch(config).buffer)


def load(path: Path) -> Artefact:
    """Open a program of one input in ExecuTorch's runtime."""
    from executorch.runtime import Runtime, Verification

    program: Any = Runtime.get().load_program(path, verification=Verification.InternalConsistency)

    def text(name: str) -> Any:
        return json.loads(program.load_method(name).execute([])[0]) if name in program.method_names else None

    method = program.load_method("forward")
    largest = method.metadata.input_tensor_meta(0).sizes()[0]

    def run(batch: Tensor) -> Any:
        parts = [[each.clone() for each in method.execute([part])] for part in batch.contiguous().split(largest)]
        outputs = [torch.cat(each) for each in zip(*parts, strict=True)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return Artefact(path, run, text(_SHAPE), text(METADATA))


def _instance_norm(x, weight, bias, mean, var, use_input_stats, momentum, eps, cudnn_enabled) -> Tensor:
    """Return instance normalisation of a map (B, C, H, W) in operators that XNNPACK has."""
    centred = x - x.mean((2, 3), keepdim=True)
    spread = (centred * centred).mean((2, 3), keepdim=True)
    return centred * torch.rsqrt(spread + eps) * weight.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


_SHAPE = "shape"  # of the input: the runtime knows its largest sizes only
FORMAT = Format("executorch", ".pte", write, load, modules=("executorch",), runtime=("executorch",), extra="executorch")
