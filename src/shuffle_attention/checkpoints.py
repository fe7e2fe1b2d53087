"""Reading and writing weights: nothing in a file is executed, nothing is loaded in part without a word."""

import fnmatch
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError
from .files import written_whole

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
    """What :func:`load_checkpoint` did.

    Attributes:
        loaded: Number of entries copied into the model.
        weights: Name under which the file holds them: ``"state_dict_ema"``, say, or ``""`` for a bare state dict.
        kept: Entries of the model that stay as they were because the caller allowed it.
        unused: Entries of the file that went nowhere because the caller allowed it.
    """

    loaded: int
    weights: str
    kept: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def load_checkpoint(
    model: nn.Module, path: str | os.PathLike, *, may_differ: Iterable[str] = (), ema: bool | None = None
) -> LoadReport:
    """Loads the whole of a checkpoint into a model, or nothing of it.

    Reads the published ``.pth.tar`` files (``state_dict`` under ``module.``), bare state dicts, the
    checkpoints of ``sanet train`` and ``.safetensors``.

    Args:
        model: Network that takes the weights.
        path: File to read.
        may_differ: Patterns of entries that may be missing, unexpected or of another shape, such as
            ``["fc.*"]`` for a new head. Those that fit are loaded all the same.
        ema: Whether to take the averaged weights; None takes them where the file has them.

    Returns:
        What was loaded, and what was left out by permission.

    Raises:
        CheckpointError: If the file cannot be read safely, or if any entry is missing, unexpected or of
            another shape and is not in ``may_differ``. The model is then as it was.
        FileNotFoundError: If there is no such file.

    Example:
        >>> load_checkpoint(model, "sa_resnet50.pth.tar")  # doctest: +SKIP
        LoadReport(loaded=416, weights='state_dict', kept=(), unused=())
    """
    weights, name = find_state_dict(read_checkpoint(path), ema=ema, path=path)
    own = model.state_dict()
    # A model may itself have a part called "module": its own keys are taken as they are.
    weights = {key if key in own else _WRAPPERS.sub("", key): value for key, value in weights.items()}
    patterns = tuple(may_differ)

    def allowed(key: str) -> bool:
        return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)

    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    reshaped = [key for key in own if key in weights and weights[key].shape != own[key].shape]
    faults = [
        _fault("missing", [key for key in missing if not allowed(key)]),
        _fault("unexpected", [key for key in unexpected if not allowed(key)]),
        _fault(
            "wrongly shaped",
            [f"{key} {tuple(weights[key].shape)} for {tuple(own[key].shape)}" for key in reshaped if not allowed(key)],
        ),
    ]
    if any(faults):
        fitting = len(own) - len(missing) - len(reshaped)
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {fitting} of its {len(own)} entries would load; "
            + "; ".join(filter(None, faults))
            + ". Nothing was loaded. Name what may differ in may_differ, such as ['fc.*'] for a new head."
        )
    kept = {*missing, *reshaped}
    model.load_state_dict({**own, **{key: value for key, value in weights.items() if key in own and key not in kept}})
    return LoadReport(len(own) - len(kept), name, tuple(sorted(kept)), tuple(unexpected + reshaped))


def _fault(kind: str, entries: list[str], shown: int = 4) -> str:
    if not entries:
        return ""
    more = f" and {len(entries) - shown} more" if len(entries) > shown else ""
    return f"{len(entries)} {kind}: {', '.join(entries[:shown])}{more}"


def find_state_dict(
    content: Mapping[str, Any], *, ema: bool | None = None, path: str | os.PathLike = "checkpoint"
) -> tuple[dict[str, Tensor], str]:
    """Returns the weights inside the content of a checkpoint, and the name they stand under there.

    Raises:
        CheckpointError: If there are none, or no averaged ones where ``ema`` asks for them.
    """
    names = (() if ema is False else _EMA_WEIGHTS) + (() if ema else _WEIGHTS)
    for name in names:
        if isinstance(content.get(name), Mapping):
            found = content[name]
            break
    else:
        found, name = content, ""
    weights = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if not weights or (name == "" and (ema or len(weights) != len(found))):
        what = "averaged weights" if ema else "weights"
        raise CheckpointError(
            f"{path} holds no {what}: expected a dict of tensors, or one under {' or '.join(map(repr, names))}; "
            f"found {_fault('keys', [str(key) for key in content]) or 'an empty dict'}"
        )
    return weights, name


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the content of a checkpoint file, on the CPU, without running any code from it.

    Raises:
        CheckpointError: If the file is damaged, or asks for more than tensors and plain containers.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
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
    """Writes a checkpoint whole; a run that is killed meanwhile still has the one before."""
    with written_whole(path) as file:
        torch.save(dict(content), file)
