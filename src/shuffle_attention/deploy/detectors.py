"""torchvision's detectors as ONNX files, of standard operators only.

A file takes one image (1, 3, H, W) in [0, 1] of any size. It normalises and resizes the image itself, and returns
``boxes`` (N, 4) as x1, y1, x2, y2 in pixels of this image, ``labels`` (N,) from 1 on, ``scores`` (N,), highest first,
and, for ``mask_rcnn``, ``masks`` (N, 1, M, M) in [0, 1], each of which fills its box.

The exporter is the one for TorchScript, which torchvision's detectors are prepared for. ``torch.export`` stops at their
non-maximum suppression: ``torchvision.ops.batched_nms`` branches on the number of boxes.
"""

import copy
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from ..errors import InputError, require_extra
from ..kernels import use_reference
from .format import Artefact
from .onnx import FORMAT, save
from .rewrite import rewrite

OUTPUTS: tuple[str, ...] = ("boxes", "labels", "scores", "masks")
_OPSET = 17
_NEAR = 1e-3  # of the longer side of the image for boxes, of 1 for scores: closer detections are the same


class DetectorFile(Artefact):
    """A detector in a file, with the interface of torchvision's detectors in evaluation."""

    @classmethod
    def of(cls, artefact: Artefact) -> "DetectorFile":
        """Return an opened file as a detector."""
        return cls(artefact.path, artefact.run, artefact.shape, artefact.metadata, artefact.content)

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the objects in images (3, H, W) of any sizes, which are processed one at a time.

        Raises:
            InputError: If the runtime refuses an image.
        """
        return [self._detect(image.cpu()) for image in images]

    def _detect(self, image: Tensor) -> dict[str, Tensor]:
        output = dict(zip(OUTPUTS, super().forward(image[None]), strict=False))
        if "masks" in output:
            height, width = image.shape[-2:]
            output["masks"] = paste_masks_in_image(output["masks"], output["boxes"], (height, width))
        return output


@dataclass(frozen=True)
class Agreement:
    """Comparison of the detections of a file with PyTorch's.

    Attributes:
        objects: Number of objects that PyTorch detects.
        unmatched: Number of objects that only one of both detects.
        box: Largest difference of a coordinate, in pixels.
        score: Largest difference of a score.
        mask: Share of the pixels of all masks that only one of both has.
    """

    objects: int
    unmatched: int
    box: float
    score: float
    mask: float

    def __str__(self) -> str:
        return (
            f"of {self.objects} objects {self.unmatched} differ; the others by at most {self.box:.1e} pixels and "
            f"{self.score:.1e} in the score"
        )


def export_detector(
    detector: nn.Module, path: str | os.PathLike, *, images: Sequence[Tensor], metadata: Mapping[str, Any] | None = None
) -> Agreement:
    """Write a detector as an ONNX file that needs neither this package nor torchvision.

    Its backbone is rewritten by :func:`rewrite` first. ONNX Runtime then runs the file on the images, and the file gets
    its final name only if it detects what the detector does: one object in a hundred may differ.

    Args:
        detector: Detector of torchvision or of :func:`create_detector`. It is copied.
        path: File to write.
        images: Images (3, H, W) in [0, 1], of any sizes, to compare on.
        metadata: Description of the model, values of JSON, to be written into the file.

    Returns:
        How far the file agrees with the detector.

    Raises:
        InputError: If another format is asked for, a module that ONNX needs is missing, the path cannot be written to,
            the exporter does not know an operator of the backbone, or the file detects something else.
    """
    path = Path(path)
    if path.suffix != FORMAT.suffix:
        raise InputError(
            f"detectors are exported to ONNX only, which ends in {FORMAT.suffix}, got {path.name}: torch.export, which "
            "the other formats need, stops at torchvision's batched_nms, which branches on the number of boxes"
        )
    require_extra(*FORMAT.modules, extra=FORMAT.extra)
    if not path.resolve().parent.is_dir() or path.is_dir():
        raise InputError(f"cannot write {path}: it must be a file in a folder that exists")
    detector = copy.deepcopy(detector).cpu().eval()
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.unfinished-") as folder:
        unchecked = Path(folder) / path.name
        try:
            _write(detector, images[0], unchecked, metadata or {})
        except Exception as error:  # exporters raise errors of many types
            raise InputError(f"{type(detector).__name__} cannot be exported to ONNX: {str(error)[:600]}") from error
        agreement = _compare(detector, DetectorFile.of(FORMAT.load(unchecked)), images)
        if agreement.unmatched > 0.01 * agreement.objects or agreement.mask > 0.01:
            raise InputError(f"{path} was not written: it detects something else than PyTorch ({agreement})")
        os.replace(unchecked, path)
    return agreement


def _write(detector: nn.Module, image: Tensor, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a detector as an ONNX file of one image, ``images`` (1, 3, H, W), to :data:`OUTPUTS`."""
    import onnx

    model = _OneImage(rewrite(detector)[0]).eval()
    names = OUTPUTS[: len(model(image[None]))]
    with use_reference(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer about constants, and of the exporter about its successor
        torch.onnx.export(
            model,
            (image[None],),
            path,
            dynamo=False,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=[*names],
            dynamic_axes={"images": {2: "height", 3: "width"}, **{name: {0: "objects"} for name in names}},
        )
    save(onnx.load(path), path, {**metadata, "input": [3, None, None]})


class _OneImage(nn.Module):
    """A detector of one image (1, 3, H, W) that returns :data:`OUTPUTS` as a tuple."""

    def __init__(self, detector: Any):
        super().__init__()
        self.detector = detector
        detector.transform.__class__ = _Transform

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        (output,) = self.detector([images[0]])
        return tuple(output[name] for name in OUTPUTS if name in output)


class _Transform(GeneralizedRCNNTransform):
    """torchvision's resize, to sizes that do not depend on the tracer, and boxes in pixels of the image.

    When it is traced, torchvision's own computes sizes in float32; one size of seven is then a pixel smaller or larger.
    """

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        if self.fixed_size is not None:
            return super().resize(image, target)
        shape = torch._shape_as_tensor(image)[-2:].double()  # which the tracer records, unlike image.shape
        sizes: Any = self.min_size
        limits = torch.tensor([sizes[-1], self.max_size], dtype=torch.float64)
        scale = (limits / torch.stack([shape.min(), shape.max()])).amin()
        size: Any = (shape * scale).floor().long().unbind()
        return functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target

    def postprocess(self, result: Any, image_shapes: Any, original_image_sizes: Any) -> Any:
        for each, inside, outside in zip(result, image_shapes, original_image_sizes, strict=True):
            each["boxes"] = resize_boxes(each["boxes"], inside, outside)
        return result


def _compare(detector: nn.Module, file: nn.Module, images: Sequence[Tensor]) -> Agreement:
    """Compare what a detector and its file detect in images."""
    objects = unmatched = 0
    box = score = 0.0
    pixels = torch.zeros(2)  # of both masks, of one of them
    first = images[0]
    for image in (*images, first[:, : max(1, 2 * first.shape[1] // 3)]):  # one of another size than was traced
        expected, output = detector([image])[0], file([image])[0]
        a, b = expected["boxes"], output["boxes"]
        objects += len(a)
        if not (len(a) and len(b)):
            unmatched += len(a) + len(b)
            continue
        boxes = (a[:, None] - b).abs().amax(2)
        scores = (expected["scores"][:, None] - output["scores"]).abs()
        labels = expected["labels"][:, None] == output["labels"]
        same = labels & (boxes <= _NEAR * max(image.shape)) & (scores <= _NEAR)
        unmatched += int((~same.any(1)).sum() + (~same.any(0)).sum())
        matched = same.any(1).nonzero().flatten()
        if len(matched):
            pairs = matched, boxes.masked_fill(~same, float("inf")).argmin(1)[matched]
            box, score = max(box, float(boxes[pairs].max())), max(score, float(scores[pairs].max()))
            if "masks" in expected:
                one, other = expected["masks"][pairs[0]] >= 0.5, output["masks"][pairs[1]] >= 0.5
                pixels += torch.stack([(one | other).sum(), (one ^ other).sum()])
    return Agreement(objects, unmatched, box, score, float(pixels[1] / pixels[0].clamp_min(1)))
