"""Reading, recognising and writing weights. Nothing in a file is executed, and a file loads whole or not at all."""

import fnmatch
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..attach.insert import HOOK_CHILD, Attached, attached, block_of
from ..attach.weights import fit_attention
from ..errors import counted, listed
from .reading import CheckpointError, read_checkpoint, write_checkpoint
from .weights import COUNTER, fault, find_state_dict, kind_of, renamed, require_finite, unwrapped

__all__ = [
    "CheckpointError",
    "LoadReport",
    "find_state_dict",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "renamed",
    "require_finite",
    "unwrapped",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """Report of :func:`load_checkpoint`.

    Attributes:
        loaded: Number of entries copied into the model.
        weights: Name under which the file has them, such as ``"state_dict_ema"``; ``""`` for a bare state dict.
        kept: Entries of the model that stay as they were because the caller allowed it.
        unused: Entries of the file that were not used because the caller allowed it, or are no part of the model.
        started: Attention layers that start as the identity, since the file is of the plain model.
        switched: Attention layers that had another start than they need for the file.
        prefixes: Prefixes of the file's names that the model does not have, and that were removed.
    """

    loaded: int
    weights: str
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    started: tuple[str, ...] = ()
    switched: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line about what was recognised in the file."""
        parts = [f"{counted(self.loaded, 'entry')} from {repr(self.weights) if self.weights else 'a bare state dict'}"]
        if self.prefixes:
            parts.append(f"without the prefix {' and '.join(map(repr, self.prefixes))}")
        if self.unused:
            parts.append(f"{len(self.unused)} not used: {listed(self.unused, 3)}")
        if self.kept:
            parts.append(f"{len(self.kept)} of the model stay as they were: {listed(self.kept, 3)}")
        if self.started:
            parts.append(f"plain weights: attention starts as the identity in {counted(len(self.started), 'layer')}")
        elif self.switched:
            parts.append(f"attention has the start of the file in {counted(len(self.switched), 'layer')}")
        return "; ".join(parts)


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
    return load_weights(model, weights, path, name=name, may_differ=may_differ, ema=ema)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    path: str | os.PathLike,
    *,
    name: str = "",
    may_differ: Iterable[str] = (),
    ema: bool | None = None,
) -> LoadReport:
    """Load the whole of a state dict into a model, or nothing of it, as :func:`load_checkpoint` does.

    Args:
        model: Model.
        weights: State dict.
        path: File that it is from, for messages.
        name: Name under which the file has it.
        may_differ: Patterns of entries that may be missing, unexpected or of another shape.
        ema: Whether to prefer averaged weights among several prefixes; None prefers them.

    Raises:
        CheckpointError: If an entry does not fit.
    """
    layers = list(attached(model, every_name=True))
    weights, prefixes, left = renamed(weights, model.state_dict(), ema=ema)
    weights = _from_version_0_1(layers, weights)
    fit = fit_attention(model, weights)
    weights = fit.weights
    try:
        kept, unused = _compare(model, weights, tuple(may_differ), path)
        used = {key: value for key, value in weights.items() if key not in unused}
        require_finite(model, used, path)
    except CheckpointError:
        fit.undo()
        raise
    model.load_state_dict({**model.state_dict(), **used})
    report = LoadReport(
        len(used.keys() - set(fit.added)), name, kept, (*unused, *left), fit.started, fit.switched, prefixes
    )
    if name not in ("", "state_dict", "state_dict_ema") or prefixes or left or report.started or report.switched:
        logger.info("%s: %s", path, report)
    return report


def _compare(
    model: nn.Module, weights: dict[str, Tensor], may_differ: tuple[str, ...], path: str | os.PathLike
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the entries of the model that stay, and those of the file that are not used; both must be allowed."""
    own = model.state_dict()

    def allowed(key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in may_differ)

    missing = [key for key in own if key not in weights and not key.endswith(COUNTER)]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    shared = [key for key in own if key in weights and not key.endswith(COUNTER)]
    unlike = [key for key in shared if kind_of(weights[key]) != kind_of(own[key])]
    shapes = [f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}" for key in reshaped if not allowed(key)]
    faults = [
        fault("of another kind", [f"{key} {kind_of(weights[key])} for {kind_of(own[key])}" for key in unlike]),
        fault("missing", [key for key in missing if not allowed(key)]),
        fault("unexpected", [key for key in unexpected if not allowed(key)]),
        fault("wrongly shaped", shapes),
    ]
    if any(faults):
        fitting = len(own.keys() & weights.keys()) - len(reshaped)
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
