"""The command ``sanet export``."""

import argparse
from typing import Any


def add_export(commands: Any) -> None:
    """Add the command and its options."""
    text = "write the model of a checkpoint as a file that runs without this package"
    parser = commands.add_parser("export", help=text, description=text)
    parser.add_argument("checkpoint", help="checkpoint of sanet train, or a published one")
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    parser.add_argument("--format", metavar="NAME", help="onnx or torch; by default what the ending of FILE says")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, help="use the averaged weights (by default if there are any)"
    )
    parser.set_defaults(run=lambda options: run(options.checkpoint, options.output, options.format, options.ema))


def run(checkpoint: str, output: str, format: str | None = None, ema: bool | None = None) -> int:
    """Export the model of a checkpoint, and print how far the file is from PyTorch."""
    import os
    from pathlib import Path

    import torch

    from ...deploy import export, find_format
    from ..console import console
    from ..network import restore_network

    chosen = find_format(format, Path(output))
    restored = restore_network(checkpoint, ema=ema)
    recipe = restored.recipe
    images = torch.randn(
        4, recipe.in_chans, recipe.img_size, recipe.img_size, generator=torch.Generator().manual_seed(0)
    )
    difference = export(restored.model, output, example=images, format=chosen.name)
    console.print(
        f"{output}: {recipe.model} for images (B, {', '.join(map(str, images.shape[1:]))}), format {chosen.name}, "
        f"{os.path.getsize(output) / 2**20:.1f} MB; outputs differ from PyTorch's by at most {difference:.1e} "
        f"of the largest"
    )
    return 0
