"""The interface of a deployment format, and of the files that it writes."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

METADATA = "shuffle_attention"  # key of the metadata in a file, as JSON
_DIGEST = "content_sha256"  # of the metadata: digest of what the file computes with


class Artefact(nn.Module):
    """A deployed file, run by the runtime of its format on the CPU.

    Args:
        path: The file.
        run: Function from images (B, C, H, W) to what the file returns.
        shape: Sizes of its input (B, C, H, W); None where any size is accepted. None if the file does not say.
        metadata: Description of the model that was written into the file; empty if another program wrote the file.
        content: Function that returns what :func:`described` was given when the file was written.
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


def described(metadata: Mapping[str, Any], content: Iterable[bytes | Tensor]) -> str:
    """Return the metadata of a file as JSON, with a digest of its weights, and of its graph if ``content`` has it."""
    return json.dumps({**metadata, _DIGEST: _digest(content)})


def _digest(content: Iterable[bytes | Tensor]) -> str:
    digest = hashlib.sha256()
    for part in content:
        if isinstance(part, Tensor):
            part = part.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
        digest.update(part)
    return digest.hexdigest()


@dataclass(frozen=True)
class Format:
    """A file format for deployed models.

    Attributes:
        name: Name of the format, as in ``sanet export --format NAME``.
        suffix: Ending of its files, with the dot.
        write: Write a model to a file: ``write(model, example, path, metadata, dynamic_size)``. The model is in
            evaluation mode and consists of PyTorch's own operators; the example has shape (B, C, H, W) with B > 1, and
            B must stay free; height and width too if ``dynamic_size`` is set. The metadata are values of JSON.
        load: Open a file in the runtime of the format: ``load(path)`` returns an :class:`Artefact`.
        modules: Modules that ``write`` and ``load`` import, besides torch.
        extra: Extra of this package that installs the modules.
    """

    name: str
    suffix: str
    write: Callable[[nn.Module, Tensor, Path, Mapping[str, Any], bool], None]
    load: Callable[[Path], Artefact]
    modules: tuple[str, ...] = ()
    extra: str = ""

    def check(self, path: Path, model: nn.Module, images: Tensor) -> float:
        """Return the largest difference between the outputs of a file and of its model.

        Args:
            path: The file.
            model: The model that it was written from, in evaluation mode.
            images: Input (B, C, H, W), of any batch size.

        Returns:
            The difference relative to the largest output of the model; infinity if the shapes differ.
        """
        expected, output = model(images), self.load(path)(images)
        if output.shape != expected.shape:
            return float("inf")
        return float((output - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
