"""The interface of a deployment format, and of the files that it writes."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

METADATA = "shuffle_attention"  # key of the metadata in a file, as JSON
_DIGEST = "content_sha256"  # of the metadata: digest of what the file computes with
_PREPROCESSING = ("mean", "std", "img_size", "in_chans", "crop_pct", "interpolation")  # fields of a recipe


class Artefact(nn.Module):
    """A deployed file, run by the runtime of its format on the CPU.

    Args:
        path: The file.
        run: Function from images (B, C, H, W) to what the file returns.
        shape: Sizes of its input (B, C, H, W); None where any size is accepted. None if the file does not say.
        metadata: Description of the model that was written into the file; empty if another program wrote the file.
        content: Function that returns what :func:`described` was given when the file was written, if it was.
    """

    def __init__(
        self,
        path: Path,
        run: Callable[[Tensor], Any],
        shape: Sequence[int | None] | None = None,
        metadata: Mapping[str, Any] | None = None,
        content: Callable[[], Iterable[bytes | Tensor]] | None = None,
    ):
        super().__init__()
        if not isinstance(metadata, Mapping | None):
            raise InputError("its metadata are damaged")
        self.path, self.run, self.shape, self.metadata = path, run, shape, dict(metadata or {})
        self.content = content

    @property
    def unaltered(self) -> bool | None:
        """Whether the file still has the weights that were written; None if it does not record their digest."""
        recorded = self.metadata.get(_DIGEST)
        return None if recorded is None or self.content is None else _digest(self.content()) == recorded

    @torch.no_grad()
    def forward(self, images: Tensor) -> Any:
        """Return what the file returns for images (B, C, H, W), in several runs if its batch size is fixed.

        Raises:
            InputError: If the file takes images of another size, or its runtime refuses them.
        """
        batch, *sizes = self.shape or [None] * images.dim()
        images = images.detach().cpu()
        if len(sizes) + 1 != images.dim() or any(
            size not in (None, actual) for size, actual in zip(sizes, images.shape[1:], strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in (batch, *sizes))
            raise InputError(f"{self.path} takes images of the shape ({wanted}), got {tuple(images.shape)}")
        try:
            if batch in (None, len(images)):
                return self.run(images)
            padding = images[-1:].expand(-len(images) % batch, *images.shape[1:])
            return torch.cat([self.run(part) for part in torch.cat([images, padding]).split(batch)])[: len(images)]
        except Exception as error:  # runtimes raise errors of many types
            raise InputError(
                f"{self.path} does not run on images of the shape {tuple(images.shape)}: {str(error)[:300]}"
            ) from error


def described(metadata: Mapping[str, Any], content: Iterable[bytes | Tensor] | None = None) -> dict[str, str]:
    """Return what a file says about its model, as text by key.

    Args:
        metadata: Description of the model, values of JSON.
        content: Weights of the file, and its graph if they have it, for a digest; None for none.

    Returns:
        All metadata as JSON under :data:`METADATA`, and for other programs the settings that a user of the file needs.
    """
    digest = {} if content is None else {_DIGEST: _digest(content)}
    recipe = metadata.get("recipe", {})
    plain = {name: recipe[name] for name in _PREPROCESSING if name in recipe}
    plain |= {name: metadata[name] for name in ("classes", "input", "version", "commit") if metadata.get(name)}
    text = {name: value if isinstance(value, str) else json.dumps(value) for name, value in plain.items()}
    return {**text, METADATA: json.dumps({**metadata, **digest})}


def _digest(content: Iterable[bytes | Tensor]) -> str:
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, Tensor):
            part = part.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Comparison:
    """Outputs of a file beside those of the model that it was written from.

    Attributes:
        difference: Largest difference, relative to the largest output of the model; infinity if the shapes differ.
        images: Number of images.
        changed: Number of images whose largest output has another index.
    """

    difference: float
    images: int
    changed: int


@dataclass(frozen=True)
class Format:
    """A file format for deployed models.

    Attributes:
        name: Name of the format, as in ``sanet export --format NAME``.
        suffix: Ending of its files, with the dot.
        write: Write a model to a file: ``write(model, example, path, metadata, dynamic_size)``. The model is in
            evaluation mode and consists of PyTorch's own operators; the example has shape (B, C, H, W) with B > 1, and
            B must stay free. If ``dynamic_size`` is set, height and width must too, up to those of the example. The
            metadata are values of JSON. Files beside ``path`` belong to it.
        load: Open a file in the runtime of the format: ``load(path)`` returns an :class:`Artefact`.
        modules: Modules that ``write`` imports, besides torch.
        runtime: Modules that ``load`` imports, besides torch.
        extra: Extra of this package that installs the modules.
        runs_here: Whether this machine can run the files.
    """

    name: str
    suffix: str
    write: Callable[[nn.Module, Tensor, Path, Mapping[str, Any], bool], None]
    load: Callable[[Path], Artefact]
    modules: tuple[str, ...] = ()
    runtime: tuple[str, ...] = ()
    extra: str = ""
    runs_here: bool = True


def compare(artefact: Artefact, model: nn.Module, batches: Iterable[Tensor]) -> Comparison:
    """Compare the outputs of a file with those of its model.

    Args:
        artefact: The file.
        model: The model that it was written from, in evaluation mode.
        batches: Images (B, C, H, W), of any batch sizes.
    """
    apart, largest, images, changed = 0.0, 1e-30, 0, 0
    for batch in batches:
        expected, output = model(batch), artefact(batch)
        if output.shape != expected.shape:
            return Comparison(float("inf"), len(batch), len(batch))
        difference = float((output - expected).abs().max())
        apart = difference if math.isnan(difference) else max(apart, difference)
        largest = max(largest, float(expected.abs().max()))
        images += len(batch)
        changed += int((output.flatten(1).argmax(1) != expected.flatten(1).argmax(1)).sum())
        if math.isnan(apart):
            break
    return Comparison(apart / largest, images, changed)


def free_sizes(dynamic_size: bool) -> dict[int, str]:
    """Return the dimensions of the input that stay free, and their names."""
    return {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}
