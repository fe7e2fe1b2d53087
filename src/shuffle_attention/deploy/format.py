"""The interface of a deployment format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn


@dataclass(frozen=True)
class Format:
    """A file format for deployed models.

    Attributes:
        name: Name of the format, as in ``sanet export --format NAME``.
        suffix: Ending of its files, with the dot.
        write: Write a model to a file: ``write(model, example, path)``. The model is in evaluation mode and consists
            of PyTorch's own operators; the example has shape (B, C, H, W) with B > 1, and B must stay free.
        load: Open a file in the runtime of the format: ``load(path)`` returns a function from images to the output.
        modules: Modules that ``write`` and ``load`` import, besides torch.
        extra: Extra of this package that installs the modules.
    """

    name: str
    suffix: str
    write: Callable[[nn.Module, Tensor, Path], None]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
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
