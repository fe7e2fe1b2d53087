"""The command ``sanet export``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, counted
from ...files import require_folder_of
from ..recipes.recipe import Recipe
from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from torch import Tensor

    from ...deploy import Artefact
    from ..tasks.classification.predictor import Classifier


@dataclass(kw_only=True)
class Export(Command):
    """Write the model of a checkpoint as a file that runs without this package, and compare it with PyTorch.

    The file is run by the runtime of its format on images, and does not stay if its outputs differ. Images come from
    --data, by default the data that the model was trained on; if they are not here, from two photographs of
    scikit-learn.

    With --drop-constant-gates, attention whose gates hardly depend on the image becomes part of the layer before it. If
    that is all attention, FILE.pth is a checkpoint of the plain model, which timm and torchvision load.

    With --int8, convolutions and linear layers compute with 8-bit integers; statistics and gates of attention stay in
    floating point. Both change answers: the file is compared with the checkpoint on the validation images, is not
    written if it loses more accuracy than --max-loss, and otherwise has its certificate beside it, as sanet verify
    writes it.
    """

    name = "export"
    summary = "write a model as a file that runs without this package"
    recipe_type = Recipe
    recipe_fields = "data data_dir val_split val_fraction split_seed workers check_images skip_bad_images img_size"

    checkpoint: str = option(..., "checkpoint of sanet train, or a published one", positional=True)
    output: str = option(..., "file to write", metavar="FILE")
    format: str | None = option(
        None,
        "onnx, openvino, torch, torchscript, executorch or coreml; by default by the ending of FILE: .onnx, .xml, "
        ".pt2, .torchscript, .pte or .mlpackage",
    )
    dynamic_size: bool = option(
        False, "accept images of any height and width, which ExecuTorch cannot; their number is always free"
    )
    images: int | None = option(None, "number of images to compare on; 64", minimum=1)
    tolerance: float | None = option(
        None, "largest difference of outputs before --int8, relative to the largest; 1e-5", minimum=0
    )
    ema: bool | None = option(None, "averaged weights; used by default if there are any")
    drop_constant_gates: float | None = option(
        None,
        "fold attention whose gates deviate by at most TOLERANCE from their means over the images of --data",
        metavar="TOLERANCE",
        minimum=0,
    )
    int8: bool = option(False, "compute with 8-bit integers; needs --calibrate")
    calibrate: str | None = option(
        None, "images to measure the ranges of int8 on, of DIR/train if there is one, or 'digits'", metavar="DIR"
    )
    max_loss: float | None = option(
        None, "largest loss of accuracy by int8 or dropped gates; 0.5", minimum=0, maximum=100, metavar="POINTS"
    )
    json: str | None = option(
        None, "write the certificate of int8 or dropped gates to FILE, not OUTPUT.certificate.json", metavar="FILE"
    )

    def run(self) -> int:
        """Export the model, and print how its outputs differ from PyTorch's."""
        from ...deploy import export, find_format
        from ..console import console
        from ..device import require_one_process
        from ..tasks.classification.predictor import restore_network

        require_one_process("sanet export")
        if self.int8 != (self.calibrate is not None):
            raise InputError("--int8 and --calibrate DIR, whose images it measures ranges on, belong together")
        if self.int8 or self.drop_constant_gates is not None:
            return self.approximated()
        if self.max_loss is not None or self.json is not None:
            raise InputError(
                "--max-loss and --json are for changed models; give --int8 or --drop-constant-gates TOLERANCE too"
            )
        output = Path(self.output)
        chosen = find_format(self.format, output)
        classifier = restore_network(self.checkpoint, ema=self.ema)
        recipe = classifier.recipe = classifier.recipe.replaced(**self.overrides)
        images, source = self.images_to_compare(classifier)
        metadata = self.metadata(classifier)
        comparison = export(
            classifier.model,
            output,
            example=images,
            metadata=metadata,
            **self.export_options,
        )
        parts = output.rglob("*") if output.is_dir() else output.parent.glob(f"{output.stem}.*")
        own = [part for part in parts if part.is_file() and (output.is_dir() or part.suffix in (output.suffix, ".bin"))]
        size = sum(part.stat().st_size for part in own) / 2**20
        shape = ", ".join("any" if side is None else str(side) for side in metadata["input"])
        console.print(f"{output}: {recipe.model} for images (any, {shape}), format {chosen.name}, {size:.1f} MB")
        if comparison is None:
            console.print(f"The file was not run: this machine cannot run the format {chosen.name}.")
        else:
            console.print(
                f"On {counted(comparison.images, 'image')} ({source}) its outputs differ from PyTorch's by at most "
                f"{comparison.difference:.1e} of the largest, and {counted(comparison.changed, 'answer')} changed."
            )
        return 0

    @property
    def export_options(self) -> dict[str, Any]:
        """Arguments of ``deploy.export`` that options choose."""
        tolerance = 1e-5 if self.tolerance is None else self.tolerance
        return {"format": self.format, "dynamic_size": self.dynamic_size, "tolerance": tolerance}

    def metadata(self, classifier: Classifier) -> dict[str, Any]:
        """Return the description of the model that is written into the file."""
        from ... import __version__
        from ...files import sha256
        from ..environment import environment

        recipe = classifier.recipe
        return {
            "kind": recipe.kind,
            "recipe": recipe.shared().to_dict(),
            "num_classes": classifier.num_classes,
            "classes": classifier.classes,
            "input": [recipe.in_chans, *([None, None] if self.dynamic_size else [recipe.img_size] * 2)],
            "version": __version__,
            "commit": environment()["commit"],
            "checkpoint": Path(self.checkpoint).name,
            "checkpoint_sha256": sha256(self.checkpoint),
            "weights": classifier.weights,
        }

    def images_to_compare(self, classifier: Classifier) -> tuple[Tensor, str]:
        """Return images as the model sees them, (B, C, H, W), and where they are from."""
        source, most = classifier.recipe.data, self.images or 64
        if source == "digits":
            return images_of(classifier, source, "val", most), "scikit-learn's digits"
        if "data" in self.overrides or Path(source).expanduser().is_dir():
            return images_of(classifier, source, "val", most), f"from {source}"
        return photograph_parts(classifier, most), "parts of two photographs of scikit-learn"

    def approximated(self) -> int:
        """Fold constant gates, quantise, or both, and write the model with a certificate unless it loses too much."""
        import copy
        import os
        import tempfile

        from ...deploy import export, find_format, load, quantise
        from ...deploy.quantise import require_quantiser
        from ..report.certificate import certify
        from ..tasks.classification.constant_gates import fold_constant_gates, write_plain
        from ..tasks.classification.predictor import restore_network

        require_folder_of("--output", self.output)
        require_folder_of("--json", self.json)
        output, is_plain = Path(self.output), self.output.endswith(".pth") and not self.format and not self.int8
        chosen = None if is_plain else find_format(self.format, output)
        if chosen is None and (self.images, self.tolerance, self.dynamic_size) != (None, None, False):
            raise InputError("--images, --tolerance and --dynamic-size are for exported files, not for a checkpoint")
        if self.int8 and chosen is not None:
            require_quantiser(chosen)
        original = restore_network(self.checkpoint, ema=self.ema)
        original.recipe = original.recipe.replaced(**{"workers": 2, **self.overrides})
        images = images_of(original, self.calibrate, "train", 300) if self.calibrate else None
        changed, facts = copy.copy(original), {}
        metadata = self.metadata(original)
        report = None
        if self.drop_constant_gates is not None:
            report = fold_constant_gates(changed, self.drop_constant_gates)
            print(report)
            metadata["constant_gates"] = {"tolerance": self.drop_constant_gates, "folded": report.folded}
            facts["constant_gates"] = asdict(report)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.unfinished-") as folder:
            path = Path(folder) / output.name
            if chosen is None and report is not None:
                artefact = write_plain(changed, report, path, metadata)
            else:
                example, _ = self.images_to_compare(original)
                export(changed.model, path, example=example, metadata=metadata, **self.export_options)
                artefact = load(path)
            if images is not None:
                path = Path(folder) / "int8" / output.name
                path.parent.mkdir()
                quantise(artefact.path, images, path)
                artefact, in_float = load(path), artefact
                facts["beside_float"] = beside_float(artefact, in_float, images)
            certificate = replace(certify(artefact, original, max_loss=self.max_loss, **facts), file=self.output)
            certificate.show()
            if certificate.failures:
                raise InputError(f"{output} was not written: {certificate.failures[0]}")
            certificate.write(self.json or f"{output}.certificate.json")
            for part in sorted(path.parent.iterdir(), key=lambda part: part == path):
                os.replace(part, output.with_name(part.name))
        return 0


def images_of(classifier: Classifier, source: str, split: str, most: int) -> Tensor:
    """Return images as a classifier sees them, (B, C, H, W), at even distances in a folder.

    Args:
        classifier: The classifier.
        source: Folder of images, of which those in its folder ``split`` are taken if it has one; or ``digits``.
        split: "train" or "val".
        most: Largest number of images.

    Raises:
        InputError: If there are no images, or one cannot be read.
    """
    import torch

    from ..data.datasets import load_digits
    from ..data.image_files import find_images

    if source == "digits":
        digits, _ = load_digits(split)
        return torch.cat([classifier.inputs(image) for image, _ in digits[:: -(-len(digits) // most)]])
    folder = Path(source).expanduser()
    images = find_images([folder / split if (folder / split).is_dir() else folder], most)
    return torch.stack([classifier.view.tensor(image) for image in images])


def photograph_parts(classifier: Classifier, count: int) -> Tensor:
    """Return squares of scikit-learn's two sample photographs as a classifier sees them, (B, C, H, W)."""
    import numpy as np
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    draw, photographs = np.random.default_rng(0), load_sample_images().images
    parts = []
    for number in range(count):
        pixels = np.asarray(photographs[number % len(photographs)])
        side = int(draw.integers(128, min(pixels.shape[:2]) + 1))
        top, left = (int(draw.integers(extent - side + 1)) for extent in pixels.shape[:2])
        parts.append(classifier.inputs(Image.fromarray(pixels[top : top + side, left : left + side])))
    return torch.cat(parts)


def beside_float(artefact: Artefact, in_float: Artefact, images: Tensor) -> dict[str, Any]:
    """Print and return size and time of a quantised file over those of the file in floating point."""
    from ..console import console
    from ..timing import interleaved

    folders = [each.path.parent for each in (artefact, in_float)]
    sizes = [sum(part.stat().st_size for part in folder.iterdir() if part.is_file()) for folder in folders]
    facts: dict[str, Any] = {"size": sizes[0] / sizes[1]}
    for batch in (1, 8):
        part = images[:batch]
        calls = {"int8": lambda part=part: artefact.run(part), "float": lambda part=part: in_float.run(part)}
        times = interleaved(calls, 20)
        facts[f"time_batch_{batch}"], _, _ = times["int8"].over(times["float"])
    console.print(
        f"int8 beside float: size {facts['size']:.2f}, time {facts['time_batch_1']:.2f} for one image and "
        f"{facts['time_batch_8']:.2f} for eight"
    )
    return facts
