"""The command ``sanet export``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import require_folder_of
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command


@dataclass(kw_only=True)
class Export(Command):
    """Write the model of a checkpoint as a file that runs without this package, and compare it with PyTorch.

    With --drop-constant-gates, attention whose gates hardly depend on the image becomes part of the layer before it. If
    that is all attention, FILE.pth is a checkpoint of the plain model, which timm and torchvision load.
    """

    name = "export"
    summary = "write a model as a file that runs without this package"
    recipe_type = Recipe
    recipe_fields = "data data_dir val_split val_fraction split_seed workers check_images skip_bad_images"

    checkpoint: str = option(..., "checkpoint of sanet train, or a published one", positional=True)
    output: str = option(..., "file to write", metavar="FILE")
    format: str | None = option(None, "onnx or torch; by default by the ending of FILE")
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    drop_constant_gates: float | None = option(
        None,
        "fold attention whose gates deviate by at most TOLERANCE from their means over the images of --data",
        metavar="TOLERANCE",
        minimum=0,
    )
    max_loss: float | None = option(
        None, "largest loss of accuracy by dropped gates; 0.5", minimum=0, maximum=100, metavar="POINTS"
    )
    json: str | None = option(None, "write the certificate of dropped gates to FILE", metavar="FILE")

    def run(self) -> int:
        """Export the model, and print the largest difference of its outputs from PyTorch's."""
        import os

        import torch

        from ...deploy import export, find_format
        from ..console import console
        from ..tasks.classification.predictor import restore_network

        if self.drop_constant_gates is not None:
            return self.without_constant_gates(self.drop_constant_gates)
        if self.max_loss is not None or self.json is not None:
            raise InputError("--max-loss and --json are about dropped gates; give --drop-constant-gates TOLERANCE too")
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

    def without_constant_gates(self, tolerance: float) -> int:
        """Fold constant gates, and write the model with a certificate unless it loses too much accuracy."""
        import copy
        import os
        import tempfile

        import torch

        from ...deploy import export, find_format, load
        from ...files import sha256
        from ..report.certificate import certify
        from ..tasks.classification.constant_gates import fold_constant_gates, write_plain
        from ..tasks.classification.predictor import restore_network

        require_folder_of("--output", self.output)
        require_folder_of("--json", self.json)
        output, is_plain = Path(self.output), self.output.endswith(".pth") and self.format is None
        format_name = None if is_plain else find_format(self.format, output).name
        original = restore_network(self.checkpoint, ema=self.ema)
        original.recipe = original.recipe.replaced(**{"workers": 2, **self.overrides})
        folded = copy.copy(original)
        report = fold_constant_gates(folded, tolerance)
        print(report)
        metadata: dict[str, Any] = {"constant_gates": {"tolerance": tolerance, "folded": report.folded}}
        recipe = original.recipe
        metadata |= {"kind": recipe.kind, "recipe": recipe.to_dict()}
        metadata |= {"num_classes": original.num_classes, "classes": original.classes}
        metadata |= {"checkpoint": Path(self.checkpoint).name, "checkpoint_sha256": sha256(Path(self.checkpoint))}
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.unfinished-") as folder:
            path = Path(folder) / output.name
            if is_plain:
                artefact = write_plain(folded, report, path, metadata)
            else:
                size = recipe.in_chans, recipe.img_size, recipe.img_size
                images = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
                export(folded.model, path, example=images, format=format_name, metadata=metadata)
                artefact = load(path)
            certificate = certify(artefact, original, max_loss=self.max_loss, constant_gates=asdict(report))
            certificate = replace(certificate, file=self.output)
            certificate.show()
            if self.json is not None:
                certificate.write(self.json)
            if certificate.failures:
                raise InputError(f"{output} was not written: {certificate.failures[0]}")
            os.replace(path, output)
        return 0
