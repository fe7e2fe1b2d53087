"""Find formats by name and export models to them."""

import copy
import importlib
import json
import logging
import os
import pkgutil
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoints.reading import NOT_DOWNLOADED
from ..errors import InputError, require_extra, unknown
from ..kernels import use_reference
from .format import Artefact, Comparison, Format, compare
from .rewrite import NOT_REWRITTEN, rewrite

logger = logging.getLogger(__name__)
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
            raise InputError(f"no format has files like {path.name}; their endings are {', '.join(sorted(by_suffix))}")
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
    require_extra(*chosen.runtime, extra=chosen.extra)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # runtimes warn of their own deprecated and experimental parts
            return chosen.load(path)
    except Exception as error:  # runtimes raise errors of many types
        raise InputError(
            f"{path} cannot be read as a file of the format {chosen.name}: {_reason(path, error)}"
        ) from error


def _reason(path: Path, error: Exception) -> str:
    """Return why a file cannot be opened, in bounded length; the end of a runtime's message says most."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(256)
    for start, what, remedy in NOT_DOWNLOADED:
        if re.match(start, head):
            return f"it {what}; {remedy}"
    if isinstance(error, json.JSONDecodeError | RecursionError):
        return "its metadata are damaged"
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else f"{text[:80]} ... {text[-200:]}"


def export(
    model: nn.Module,
    path: str | os.PathLike,
    *,
    example: Tensor,
    format: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    dynamic_size: bool = False,
    tolerance: float = 1e-5,
) -> Comparison | None:
    """Write a model as a file that needs neither this package nor its kernels, rewritten by :func:`rewrite` first.

    The file is run by the runtime of its format on the example, in batches of other sizes than it was written with,
    and its output compared with the model's; with ``dynamic_size`` also on enlarged images. Only a file that agrees
    gets its final name. What was there before stays until then.

    Args:
        model: Model that maps images (B, C, H, W) to one tensor. It is copied, and exported in evaluation mode.
        path: File to write.
        example: Images (B, C, H, W) to trace the model with and to compare the outputs on.
        format: Name of the format; by default the one that the suffix of the path belongs to.
        metadata: Description of the model, values of JSON, to be written into the file.
        dynamic_size: Whether the file accepts images of any height and width, in Core ML up to twice those
            of the example; ExecuTorch cannot.
        tolerance: Largest difference allowed, relative to the largest output of the model.

    Returns:
        The outputs of the file beside those of the model; None if this machine cannot run the format.

    Raises:
        InputError: If the format is unknown, a module that it needs is missing, the path cannot be written to, the
            model does not return one tensor or cannot be converted, or the file computes something else.
    """
    if isinstance(model, Artefact):
        raise InputError(f"{model.path} is a deployed file already; export the checkpoint that it was written from")
    path = Path(path)
    chosen = find_format(format, path)
    require_extra(*chosen.modules, *(chosen.runtime if chosen.runs_here else ()), extra=chosen.extra)
    if not path.resolve().parent.is_dir() or (path.is_dir() and not (path / "Manifest.json").is_file()):
        raise InputError(f"cannot write {path}: it must be a file in a folder that exists")
    with torch.inference_mode(False):  # tensors that are copied in inference mode could not be rewritten
        model, example = copy.deepcopy(model).cpu().eval(), example.detach().cpu().clone()
    images = torch.cat([example, example]) if len(example) == 1 else example  # a batch of one may become a constant
    unfinished = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.unfinished-")
    with torch.inference_mode(False), torch.no_grad(), unfinished as folder:
        output = model(images[:2])
        if not isinstance(output, Tensor):
            raise InputError(f"only models that return one tensor can be exported, got {type(output).__name__}")
        batches = [*_batches(images), *(_resized(model, images) if dynamic_size else ())]
        rewritten, report = rewrite(model, example=images[:2])
        for reason in report.kept.values():
            if reason.startswith(NOT_REWRITTEN):
                logger.warning("%s is exported as it is: %s", path.name, reason)
        single = nn.Sequential(rewritten).eval()  # has one input by position, as formats expect
        unchecked = Path(folder) / path.name
        # Larger where the size is free: some formats are bounded, and a map of one pixel may become a constant.
        traced = functional.interpolate(images[:2], scale_factor=2.0) if dynamic_size else images[:2]
        size = " of free size" if dynamic_size else ""
        try:
            with use_reference(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # converters warn of their own deprecated parts
                chosen.write(single, traced, unchecked, metadata or {}, dynamic_size)
        except Exception as error:  # converters raise errors of many types
            raise InputError(
                f"{type(model).__name__} cannot be written as a file of the format {chosen.name}{size}: "
                f"{type(error).__name__}: {str(error)[:600]}"
            ) from error
        comparison = compare(load(unchecked), model, batches) if chosen.runs_here else None
        if comparison is not None and not comparison.difference <= tolerance:  # NaN is a difference too
            raise InputError(
                f"{path} was not written: its output differs from PyTorch's by {comparison.difference:.1e} relative to "
                f"the largest output, and {tolerance:.1e} is allowed"
            )
        parts = sorted(Path(folder).iterdir(), key=lambda part: part.name == path.name)
        if path.is_dir():
            os.replace(path, Path(folder) / "before")
        for part in parts:
            os.replace(part, path.with_name(part.name))
    return comparison


def _batches(images: Tensor) -> list[Tensor]:
    """Return images as a batch of one and batches of eight."""
    return [images[:1], *images[1:].split(8)]


def _resized(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return some images in two other sizes, one of them odd.

    Raises:
        InputError: If the model does not run on one of them.
    """
    height, width = images.shape[2:]
    sizes = [(height * 5 // 4 | 1, width * 3 // 2 | 1), (height * 3 // 2 & ~1, width * 5 // 4 & ~1)]
    batches = [functional.interpolate(images[:3], size, mode="bilinear") for size in sizes]
    for batch in batches:
        try:
            model(batch)
        except Exception as error:  # a model may raise anything
            raise InputError(
                f"{type(model).__name__} runs on images of {height} x {width} pixels and not of {batch.shape[2]} x "
                f"{batch.shape[3]}, so it cannot have a free size: {str(error)[:300]}"
            ) from error
    return batches
