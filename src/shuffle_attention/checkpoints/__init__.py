"""Reading, recognising and writing weights. Nothing in a file is executed, and a file loads whole or not at all."""

import fnmatch
import os
import pickle
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attach.insert import HOOK_CHILD, Attached, attached, block_of
from ..attach.weights import fit_attention
from ..errors import InputError, listed
from ..files import atomic_write

# Wrappers that put their name before every key: DataParallel and DDP, torch.compile.
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_WEIGHTS = ("state_dict", "model")
_EMA_WEIGHTS = ("state_dict_ema", "model_ema")
# Metrics beside the weights are often NumPy scalars. Building one runs none of the file's code.
_NUMPY_SCALARS = [
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")),
]


class CheckpointError(InputError):
    """A checkpoint that cannot be used as asked; nothing has been loaded."""


@dataclass(frozen=True)
class LoadReport:
    """Report of :func:`load_checkpoint`.

    Attributes:
        loaded: Number of entries copied into the model.
        weights: Name under which the file has them, such as ``"state_dict_ema"``; ``""`` for a bare state dict.
        kept: Entries of the model that stay as they were because the caller allowed it.
        unused: Entries of the file that were not used because the caller allowed it.
        started: Attention layers that start as the identity, since the file is of the plain model.
        switched: Attention layers that had another start than they need for the file.
    """

    loaded: int
    weights: str
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    switched: tuple[str, ...] = ()


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike, *, may_differ: Iterable[str] = (), ema: bool | None = None
) -> LoadReport:
    """Load the whole of a checkpoint into a model, or nothing of it.

    Reads the published ``.pth.tar`` files (``state_dict`` under ``module.``), bare state dicts, the
    checkpoints of ``sanet train`` and ``.safetensors``.

    A model with attention, attached or its own (``sa_resnet50``), also loads weights of the plain model: its attention
    then starts as the identity, so it computes what the plain model computes. From other weights its layers take the
    start that these have (identity, published, or of version 0.1).

    Args:
        model: Model.
        path: File to read.
        may_differ: Patterns of entries that may be missing, unexpected or of another shape, such as
            ``["fc.*"]`` for a new head. Those that fit are loaded nevertheless.
        ema: Whether to load the averaged weights; None loads them if the file has them.

    Raises:
        CheckpointError: If the file cannot be read safely, or if any entry is missing, unexpected or of
            another shape and is not in ``may_differ``. The model is then as it was.
        FileNotFoundError: If the file does not exist.
    """
    weights, name = find_state_dict(read_checkpoint(path), ema=ema, path=path)
    layers = list(attached(model, every_name=True))
    weights = _from_version_0_1(layers, unwrapped(weights, model.state_dict()))
    fit = fit_attention(model, weights)
    weights = fit.weights
    try:
        kept, unused = _compare(model, weights, tuple(may_differ), path)
    except CheckpointError:
        fit.undo()
        raise
    own = model.state_dict()
    model.load_state_dict({**own, **{key: value for key, value in weights.items() if key in own and key not in kept}})
    return LoadReport(len(own) - len(kept) - len(fit.added), name, kept, unused, fit.started, fit.switched)


def _compare(
    model: nn.Module, weights: dict[str, Tensor], may_differ: tuple[str, ...], path: str | os.PathLike
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the entries of the model that stay, and those of the file that are not used; both must be allowed."""
    own = model.state_dict()

    def allowed(key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in may_differ)

    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    unlike = [key for key in own if key in weights and _kind(weights[key]) != _kind(own[key])]
    shapes = [f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}" for key in reshaped if not allowed(key)]
    faults = [
        _fault("of another kind", [f"{key} {_kind(weights[key])} for {_kind(own[key])}" for key in unlike]),
        _fault("missing", [key for key in missing if not allowed(key)]),
        _fault("unexpected", [key for key in unexpected if not allowed(key)]),
        _fault("wrongly shaped", shapes),
    ]
    if any(faults):
        fitting = len(own) - len(missing) - len(reshaped)
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {fitting} of its {len(own)} entries would load; "
            + "; ".join(filter(None, faults))
            + ". Nothing was loaded. Name what may differ in may_differ, such as ['fc.*'] for a new head."
        )
    return tuple(sorted({*missing, *reshaped})), tuple(unexpected + reshaped)


def _from_version_0_1(layers: list[Attached], weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights with today's names.

    In version 0.1 the layer of a block was a child of its last norm. A layer without shuffle had an entry
    ``unshuffled``; its factor ``start_scale`` is now its gain. One with shuffle computes as the published layer does.
    """
    weights = dict(weights)
    for layer in layers:
        block = block_of(layer.owner) if layer.insertion.how == "block" else None
        for end in () if block is None else block.ends:
            old = f"{layer.name.removesuffix(layer.child)}{end}.{HOOK_CHILD}."
            for key in [key for key in weights if key.startswith(old)]:
                weights[f"{layer.name}.{key.removeprefix(old)}"] = weights.pop(key)
        scale = weights.pop(f"{layer.name}.start_scale", None)
        if weights.pop(f"{layer.name}.unshuffled", None) is not None:
            weights[f"{layer.name}.gain"] = torch.ones(()) if scale is None else scale
        elif scale is not None:
            raise CheckpointError(
                f"{layer.name} multiplies its output by {scale.item():.3f}, as only version 0.1 can; nothing was loaded"
            )
    return weights


def unwrapped(weights: Mapping[str, Tensor], own: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return weights without the prefixes that DataParallel, DDP and torch.compile put before every name.

    Args:
        weights: State dict.
        own: Entries of the model; names among them are kept, for models with a part called "module".

    Raises:
        CheckpointError: If two entries then have the same name.
    """
    names = {key: key if own is not None and key in own else _WRAPPERS.sub("", key) for key in weights}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointError(f"{_fault('names stand for two entries', twice)}: with and without a prefix")
    return {name: weights[key] for key, name in names.items()}


def _kind(tensor: Tensor) -> str:
    """Return what must be equal for one tensor to be copied into another without loss of meaning."""
    numbers = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"
    if tensor.is_quantized or tensor.layout != torch.strided:
        numbers = f"quantised {numbers}" if tensor.is_quantized else f"sparse {numbers}"
    return f"{numbers} without values" if tensor.is_meta else numbers


def _fault(kind: str, entries: list[str]) -> str:
    return f"{len(entries)} {kind}: {listed(entries, 4)}" if entries else ""


def find_state_dict(
    content: Mapping[str, Any], *, ema: bool | None = None, path: str | os.PathLike = "checkpoint"
) -> tuple[dict[str, Tensor], str]:
    """Return the weights in the content of a checkpoint, and the name under which they are there.

    Raises:
        CheckpointError: If there are none, or no averaged ones where ``ema`` asks for them.
    """
    names = (() if ema is False else _EMA_WEIGHTS) + (() if ema else _WEIGHTS)
    for name in names:
        if isinstance(content.get(name), Mapping):
            entries = content[name]
            break
    else:
        entries, name = content, ""
    weights = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others = [str(key) for key in entries if key not in weights]
    if weights and others and name:
        raise CheckpointError(f"{path} holds under {name!r} {_fault('entries that are not tensors by name', others)}")
    if not weights or (name == "" and (ema or others)):
        what = "averaged weights" if ema else "weights"
        raise CheckpointError(
            f"{path} holds no {what}: expected a dict of tensors, or one under {' or '.join(map(repr, names))}; "
            f"found {_fault('keys', [str(key) for key in content]) or 'an empty dict'}"
        )
    return weights, name


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Return the content of a checkpoint file, on the CPU, without running any code from it.

    Raises:
        CheckpointError: If the file is damaged, or asks for more than tensors and plain containers.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        inside = [name for name in ("best.pt", "last.pt") if (path / name).is_file()]
        hint = f"; did you mean {path / inside[0]}?" if inside else ""
        raise CheckpointError(f"{path} is a folder and not a checkpoint{hint}")
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    try:
        if start[8:] == b"{":  # whatever its name: the length of a header in eight bytes, and the header
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: what cannot be read raises all the same
            content = torch.load(path, map_location="cpu", weights_only=True)
    # A damaged file can fail anywhere inside the readers, with whatever error stood there.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            asked = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise CheckpointError(
                f"{path} was not loaded: it asks to run {asked[1] if asked else 'code'}, and only tensors and plain "
                f"containers are read. If you trust its source, save the weights alone: "
                f"torch.save(model.state_dict(), path)"
            ) from error
        raise CheckpointError(
            f"{path} was not loaded: it is damaged, is not a checkpoint, or holds more than tensors and plain "
            f"containers ({path.stat().st_size:,} bytes, {type(error).__name__})"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    return content


def write_checkpoint(content: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write a checkpoint atomically: if the process is killed meanwhile, the previous file remains."""
    with atomic_write(path) as file:
        try:
            torch.save(dict(content), file)
        except RuntimeError as error:  # torch.save raises it for a full disk
            raise OSError(f"{path} could not be written: {error.__context__ or error}") from error
