"""Find formats by name and export models to them."""

import copy
import importlib
import os
import pkgutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, asked_for, require_extra, unknown
from ..kernels import use_reference
from .format import Artefact, Format
from .rewrite import rewrite

_formats: dict[str, Format] = {}


def register_format(deployment_format: Format) -> None:
    """Make a format known under its name.

    Raises:
        InputError: If another format has this name.
    """
    if deployment_format.name in format_names():
        raise InputError(f"there is a format {deployment_format.name!r} already; choose another name")
    _formats[deployment_format.name] = deployment_format


def format_names() -> list[str]:
    """Return the names of all formats: one file of this folder each, and the registered ones."""
    package = __package__ or ""
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        own = getattr(importlib.import_module(f"{package}.{module.name}"), "FORMAT", None)
        if own is not None:
            _formats.setdefault(own.name, own)
    return sorted(_formats)


def find_format(name: str | None, path: Path) -> Format:
    """Return a format by its name, or by the suffix of the path if the name is None.

    Raises:
        InputError: If there is no such format, or its files have another suffix.
    """
    names = format_names()
    if name is None:
        by_suffix = {each.suffix: each for each in _formats.values()}
        if path.suffix not in by_suffix:
            raise InputError(f"no format has files like {path.name}; their endings are {', '.join(by_suffix)}")
        return by_suffix[path.suffix]
    if name not in names:
        raise unknown("format", name, names)
    if path.suffix != _formats[name].suffix:
        raise InputError(f"files of the format {name} end in {_formats[name].suffix}, got {path.name}")
    return _formats[name]


def is_deployed(path: str | os.PathLike) -> bool:
    """Return whether a file, by its suffix, is one of a format."""
    format_names()
    return Path(path).suffix in {each.suffix for each in _formats.values()}


def load(path: str | os.PathLike) -> Artefact:
    """Open a deployed file in the runtime that its suffix names.

    Raises:
        InputError: If the file does not exist, its runtime is missing, or the runtime cannot read it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"no file at {path}")
    chosen = find_format(None, path)
    require_extra(*chosen.modules, extra=chosen.extra)
    try:
        return chosen.load(path)
    except Exception as error:  # runtimes raise errors of many types
        raise InputError(f"{path} cannot be read as a file of the format {chosen.name}: {str(error)[:300]}") from error


def export(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    example: Tensor,
    format: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    dynamic_size: bool = False,
    tolerance: float = 1e-4,
) -> float:
    """Write a model as a file that needs neither this package nor its kernels, rewritten by :func:`rewrite` first.

    The file is run by the runtime of its format on the example, with another batch size than it was written with,
    and its output compared with the model's. Only a file that agrees gets its final name.

    Args:
        model: Model that maps images (B, C, H, W) to one tensor. It is copied, and exported in evaluation mode.
        path: File to write.
        example: Images (B, C, H, W) to trace the model with and to compare the outputs on.
        format: Name of the format; by default the one that the suffix of the path belongs to.
        metadata: Description of the model, values of JSON, to be written into the file.
        dynamic_size: Whether the file accepts images of any height and width.
        tolerance: Largest difference allowed, relative to the largest output of the model.

    Returns:
        The largest relative difference that was measured.

    Raises:
        InputError: If the format is unknown, a module that it needs is missing, the path cannot be written to, the
            model does not return one tensor, or the file computes something else.
    """
    if isinstance(model, Artefact):
        raise InputError(f"{model.path} is a deployed file already; export the checkpoint that it was written from")
    path = Path(path)
    chosen = find_format(format, path)
    require_extra(*chosen.modules, extra=chosen.extra)
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise InputError(f"cannot write {path}: it must be a file in a folder that exists")
    model, example = copy.deepcopy(model).cpu().eval(), example.detach().cpu()
    images = torch.cat([example, example[:1]])
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.unfinished-") as folder:
        output = model(images)
        if not isinstance(output, Tensor):
            raise InputError(f"only models that return one tensor can be exported, got {type(output).__name__}")
        unchecked = Path(folder) / path.name
        rewritten, _ = rewrite(model, example=images)
        single = nn.Sequential(rewritten).eval()  # has one input by position, as formats expect
        # A batch of one would be taken for a constant.
        with use_reference(), asked_for(format=chosen.name):
            chosen.write(single, images[:2] if len(example) == 1 else example, unchecked, metadata or {}, dynamic_size)
        difference = chosen.check(unchecked, model, images)
        if not difference <= tolerance:  # NaN is a difference too
            raise InputError(
                f"{path} was not written: its output differs from PyTorch's by {difference:.1e} relative to the "
                f"largest output, and {tolerance:.1e} is allowed"
            )
        os.replace(unchecked, path)
    return difference
