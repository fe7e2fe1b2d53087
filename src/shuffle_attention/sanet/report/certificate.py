"""Certificates: a deployed file beside the checkpoint that it was exported from, on labelled images."""

import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...deploy import Artefact
from ...errors import DataError, InputError, brief, counted, listed
from ...files import sha256, write_json
from ..console import console, progress_bar, table
from ..data.datasets import Samples
from ..device import Process
from ..environment import environment
from ..statistics import mcnemar, share_at_most
from ..tasks import task_named
from ..tasks.classification.predictor import Classifier
from ..tasks.evaluation import run_model
from ..tasks.predictor import Predictor
from .html import write_page
from .run import changed_fields, fields_by_group

logger = logging.getLogger(__name__)
CONFIDENCE = 0.95
# By the precision of the file: largest difference of logits, and largest loss of accuracy in points.
BOUNDS: dict[str, tuple[float | None, float | None]] = {"fp32": (1e-5, None), "fp16": (1e-2, 0.5), "int8": (None, 0.5)}
_SEEN = ("img_size", "in_chans", "mean", "std", "interpolation", "crop_pct", "as_stored", "bit_depth")
_CPU = Process(torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Comparison of a deployed file with its checkpoint on labelled images.

    Attributes:
        file: The deployed file.
        file_sha256: Digest of its bytes.
        precision: fp32, fp16 or int8.
        unaltered: Whether weights and graph are those that were written; None if the file does not record it.
        checkpoint: The checkpoint.
        checkpoint_sha256: Digest of its bytes.
        recorded_sha256: Digest of the checkpoint that the file was exported from; None if it does not record it.
        model: Title of the model.
        data: Data of the images.
        images: Images compared.
        unreadable: Images that could not be decoded and are not counted.
        largest_difference: Largest difference of logits, relative to the checkpoint's largest logit.
        tolerance: Largest difference that is allowed; None for any.
        changed: Images with another answer: name, label, and both answers, as class names.
        both_right: Images for which both are right.
        lost: Images for which only the checkpoint is right.
        gained: Images for which only the file is right.
        max_loss: Largest loss of top-1 accuracy that is allowed, in points; None for any.
        details: Further facts about the file, such as what was changed in the model.
    """

    file: str
    file_sha256: str
    precision: str
    unaltered: bool | None
    checkpoint: str
    checkpoint_sha256: str
    recorded_sha256: str | None
    model: str
    data: str
    images: int
    unreadable: int
    largest_difference: float
    tolerance: float | None
    changed: list[dict[str, str]] = field(repr=False)
    both_right: int
    lost: int
    gained: int
    max_loss: float | None
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def top1(self) -> dict[str, float]:
        """Top-1 accuracy of the checkpoint and of the file, in percent."""
        right = {"checkpoint": self.both_right + self.lost, "file": self.both_right + self.gained}
        return {name: 100 * count / self.images for name, count in right.items()}

    @property
    def loss(self) -> float:
        """Top-1 accuracy lost on these images, in points."""
        return 100 * (self.lost - self.gained) / self.images

    @property
    def loss_at_most(self) -> float:
        """Upper bound in points on the loss of accuracy on images like these, with the confidence ``CONFIDENCE``.

        It bounds the share of images whose answer goes from right to wrong. The loss of accuracy is this share
        without that of the images whose answer goes from wrong to right, and so never larger.
        """
        return 100 * share_at_most(self.lost, self.images, CONFIDENCE)

    @property
    def failures(self) -> list[str]:
        """Reasons why the file is not what the checkpoint computes; empty if it passes."""
        reasons = []
        if self.unaltered is False:
            reasons.append("its weights or its graph were changed after it was written")
        if self.recorded_sha256 not in (None, self.checkpoint_sha256):
            reasons.append(
                f"it was exported from a checkpoint with the SHA-256 {brief(self.recorded_sha256, quoted=False)[:12]}, "
                f"and that of {self.checkpoint} is {self.checkpoint_sha256[:12]}"
            )
        if self.tolerance is not None and not self.largest_difference <= self.tolerance:  # NaN is a difference too
            reasons.append(
                f"its logits differ by {self.largest_difference:.1e} of the largest; {self.tolerance:.1e} is allowed"
            )
        if self.max_loss is not None and self.loss > self.max_loss:
            reasons.append(f"it loses {self.loss:.2f} points of accuracy, and {self.max_loss:g} is allowed")
        return reasons

    @property
    def notes(self) -> list[str]:
        """Limits of what the certificate shows."""
        notes = []
        if self.unaltered is None:
            limit = "the tolerance" if self.tolerance is not None else "what quantisation changes"
            notes.append(
                f"the file does not record a digest of its weights: a change of a weight that moves the logits by less "
                f"than {limit} cannot be seen"
            )
        if self.recorded_sha256 is None:
            notes.append("the file does not record which checkpoint it was exported from")
        if self.max_loss is not None and self.loss_at_most > self.max_loss:
            notes.append(
                f"{counted(self.images, 'image')} cannot show that the loss is at most {self.max_loss:g} points: "
                f"the upper bound is {self.loss_at_most:.2f}; more images lower it"
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return all values with what follows from them, for JSON."""
        return {
            "passed": not self.failures,
            "failures": self.failures,
            "notes": self.notes,
            **asdict(self),
            "changed_answers": len(self.changed),
            "top1": self.top1,
            "loss": self.loss,
            "loss_at_most": self.loss_at_most,
            "confidence": CONFIDENCE,
            "mcnemar_p": mcnemar(self.lost, self.gained),
            **environment("onnxruntime", "openvino"),
        }

    def show(self) -> None:
        """Print the result as a table with its notes, and log the reasons of a failure as errors."""
        result = table(("", "value"), text=("", "value"), title=f"{self.file} beside {self.checkpoint}")
        result.show_header = False
        top1 = self.top1
        sure = f"at most {self.loss_at_most:.2f} with {100 * CONFIDENCE:.0f} % confidence"
        for name, value in (
            ("images", f"{self.images:,}"),
            ("largest difference of logits", f"{self.largest_difference:.1e} of the largest"),
            ("changed answers", f"{len(self.changed):,}"),
            ("top-1 accuracy", f"{top1['checkpoint']:.2f} % of the checkpoint, {top1['file']:.2f} % of the file"),
            ("lost accuracy", f"{self.loss:.2f} points, {sure}"),
            ("McNemar's exact test", f"p = {mcnemar(self.lost, self.gained):.3g}"),
        ):
            result.add_row(name, value)
        console.print(result)
        for note in self.notes:
            logger.warning(note)
        for reason in self.failures:
            logger.error("%s fails: %s", self.file, reason)
        if not self.failures:
            console.print(f"{self.file} passes")

    def write(self, path: str | Path) -> None:
        """Write the certificate as JSON."""
        write_json(path, self.to_dict())

    def write_page(self, path: str | Path, recipe: Any) -> None:
        """Write the certificate as a page, with the recipe of the model."""
        facts = self.to_dict()
        values = {
            "title": f"{Path(self.file).name} beside {Path(self.checkpoint).name}",
            "kind": f"certificate of a deployed file, {self.model} on {Path(self.data).name}",
            "facts": facts,
            "changed": changed_fields(recipe),
            "settings": fields_by_group(recipe),
            "machines": [environment("onnxruntime", "openvino")],
        }
        write_page("certificate.html", values, Path(path))


def certify(
    artefact: Artefact,
    predictor: Predictor,
    *,
    tolerance: float | None = None,
    max_loss: float | None = None,
    batch_size: int = 64,
    **details: Any,
) -> Certificate:
    """Compare a deployed file with its checkpoint on the images of the predictor's recipe.

    Args:
        artefact: The file, opened.
        predictor: The model of the checkpoint, as it was trained.
        tolerance: Largest difference of logits, relative to the largest logit; by default that of the precision.
        max_loss: Largest loss of top-1 accuracy in points; by default that of the precision.
        batch_size: Images at a time.
        details: Further facts about the file.

    Raises:
        InputError: If the file belongs to another model, or takes or returns something else.
    """
    require_same_model(artefact, predictor)
    precision = str(artefact.metadata.get("precision", "fp32"))
    approximate = "constant_gates" in artefact.metadata  # attention was folded, which changes the logits
    default_tolerance, default_loss = BOUNDS["int8"] if approximate else BOUNDS.get(precision, BOUNDS["fp32"])
    task = task_named(predictor.recipe.kind).open_validation(predictor)
    largest = {"difference": torch.zeros(()), "logit": torch.zeros(())}
    rows: list[Tensor] = []

    def compare(images: Tensor, logits: Tensor, labels: Tensor) -> None:
        expected, output = logits.float().unbind(1)
        rows.append(torch.stack([labels, expected.argmax(1), output.argmax(1)], 1))
        readable = labels >= 0
        if readable.any():
            largest["difference"] = torch.maximum(largest["difference"], (output - expected)[readable].abs().max())
            largest["logit"] = torch.maximum(largest["logit"], expected[readable].abs().max())

    both = _Both(predictor.to(_CPU).model, artefact)
    with progress_bar(len(task.validation), "comparing") as watch:
        run_model(both, task.held_out(_CPU, batch_size), _CPU, compare, watch=watch)
    label, before, after = torch.cat(rows).unbind(1) if rows else torch.empty(3, 0)
    readable = label >= 0
    images = int(readable.sum())
    if not images:
        raise DataError(f"no image could be compared ({len(label)} unreadable)")
    right, still = (before == label)[readable], (after == label)[readable]
    names, samples = predictor.names, task.validation
    changed = [
        {
            "image": samples.name(index) if isinstance(samples, Samples) else str(index),
            **{
                key: names[int(each[index])]
                for key, each in (("label", label), ("checkpoint", before), ("file", after))
            },
        }
        for index in ((before != after) & readable).nonzero().flatten().tolist()
    ]
    return Certificate(
        file=str(artefact.path),
        file_sha256=sha256(artefact.path),
        precision=precision,
        unaltered=artefact.unaltered,
        checkpoint=predictor.source,
        checkpoint_sha256=sha256(Path(predictor.source)),
        recorded_sha256=artefact.metadata.get("checkpoint_sha256"),
        model=predictor.label,
        data=predictor.recipe.data,
        images=images,
        unreadable=len(label) - images + getattr(samples, "left_out", 0),
        largest_difference=float(largest["difference"] / largest["logit"].clamp_min(1e-30)),
        tolerance=default_tolerance if tolerance is None else tolerance,
        changed=changed,
        both_right=int((right & still).sum()),
        lost=int((right & ~still).sum()),
        gained=int((still & ~right).sum()),
        max_loss=default_loss if max_loss is None else max_loss,
        details=details,
    )


class _Both(nn.Module):
    """A model and a deployed file as one model, from images to the logits of both, shape (B, 2, classes)."""

    def __init__(self, model: nn.Module, artefact: Artefact):
        super().__init__()
        self.model, self.artefact = model, artefact

    def forward(self, images: Tensor) -> Tensor:
        expected, output = self.model(images), self.artefact(images)
        shape = tuple(getattr(output, "shape", ()))
        if shape != tuple(expected.shape):
            raise InputError(
                f"{self.artefact.path} returns {shape or type(output).__name__}, and the checkpoint's model "
                f"{tuple(expected.shape)} for the same images: they are not the same model"
            )
        return torch.stack([expected, output], 1)


def require_same_model(artefact: Artefact, predictor: Predictor) -> None:
    """Raise InputError if a file says that it holds another model than a checkpoint, or sees images otherwise."""
    if not isinstance(predictor, Classifier):
        raise InputError(
            f"{predictor.source} holds a detector, and answers of classifiers are compared; "
            f"sanet detect eval {artefact.path} measures the AP of a detector's file"
        )
    recipe, metadata = predictor.recipe, artefact.metadata
    size = [None, recipe.in_chans, recipe.img_size, recipe.img_size]
    if artefact.shape is not None and any(
        a not in (None, b) for a, b in zip(artefact.shape[1:], size[1:], strict=False)
    ):
        raise InputError(
            f"{artefact.path} takes images of {_sizes(artefact.shape)}, and {predictor.source} has {_sizes(size)}; "
            "export it again for the size of the checkpoint"
        )
    recorded = metadata.get("recipe")
    recorded = recorded if isinstance(recorded, dict) else {}
    pairs: dict[str, tuple[Any, Any]] = {
        "model": (recorded.get("model"), recipe.model),
        "number of classes": (metadata.get("num_classes"), predictor.num_classes),
        "classes": (metadata.get("classes"), predictor.classes),
        **{name: (recorded.get(name), getattr(recipe, name)) for name in _SEEN},
    }
    for name, (theirs, ours) in pairs.items():
        if theirs is not None and ours is not None and theirs != ours:
            shown = [listed(v, 4) if isinstance(v, list) and name == "classes" else brief(v) for v in (theirs, ours)]
            raise InputError(
                f"{artefact.path} was exported from another model: its {name} is {shown[0]}, "
                f"and that of {predictor.source} is {shown[1]}"
            )


def _sizes(shape: Any) -> str:
    return " x ".join("any" if size is None else str(size) for size in shape[1:])
