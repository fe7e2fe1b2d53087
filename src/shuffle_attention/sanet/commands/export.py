"""The command ``sanet export``."""

from __future__ import annotations

from dataclasses import dataclass

from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Export(Command):
    """Write the model of a checkpoint as a file that runs without this package, and compare it with PyTorch."""

    name = "export"
    summary = "write a model as a file that runs without this package"

    checkpoint: str = option(..., "checkpoint of sanet train, or a published one", positional=True)
    output: str = option(..., "file to write", metavar="FILE")
    format: str | None = option(None, "onnx or torch; by default by the ending of FILE")
    ema: bool | None = option(None, "averaged weights; used by default if there are any")

    def run(self) -> int:
        """Export the model, and print the largest difference of its outputs from PyTorch's."""
        import os
        from pathlib import Path

        import torch

        from ...deploy import export, find_format
        from ..console import console
        from ..tasks.classification.predictor import restore_network

        chosen = find_format(self.format, Path(self.output))
        restored = restore_network(self.checkpoint, ema=self.ema)
        recipe = restored.recipe
        images = torch.randn(
            4, recipe.in_chans, recipe.img_size, recipe.img_size, generator=torch.Generator().manual_seed(0)
        )
        difference = export(restored.model, self.output, example=images, format=chosen.name)
        console.print(
            f"{self.output}: {recipe.model} for images (B, {', '.join(map(str, images.shape[1:]))}), "
            f"format {chosen.name}, {os.path.getsize(self.output) / 2**20:.1f} MB; "
            f"outputs differ from PyTorch's by at most {difference:.1e} of the largest"
        )
        return 0
