"""Detectors in ONNX files: the objects of PyTorch for images of any size, and nothing left behind otherwise."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from shuffle_attention.deploy import detectors, load
from shuffle_attention.deploy.detectors import DetectorFile, export_detector
from shuffle_attention.errors import InputError
from shuffle_attention.models.detectors import create_detector

SIZES = (64, 96)  # of the input: shorter side, longer side
# Square, high, and wide; smaller and larger than the input, and of a size that float32 rounds to another.
IMAGE_SIZES = [(64, 64), (90, 40), (45, 139), (200, 230)]
FEW: dict[str, Any] = {"rpn_post_nms_top_n_test": 40, "box_detections_per_img": 10}


def images() -> list[Tensor]:
    """Return smooth noise of each size, whose pixels differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.rand(1, 3, 9, 9, generator=generator) for _ in IMAGE_SIZES]
    return [nn.functional.interpolate(x, size, mode="bilinear")[0] for x, size in zip(noise, IMAGE_SIZES, strict=True)]


def detector_of(arch: str) -> Any:
    """Return a detector that finds an object in at least one of the images, and none in at least one."""
    torch.manual_seed(0)
    two_stages = "rcnn" in arch
    options = {"backbone_options": {"channels": [8, 8, 16, 16]}, "pyramid_channels": 64, **(FEW if two_stages else {})}
    names = "box_score_thresh" if two_stages else "score_thresh"
    model: Any = create_detector(
        arch, "sa_resnet18", 4, min_size=SIZES[0], max_size=SIZES[1], **options, **{names: 0.0}
    )
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("cls_logits", "bbox_reg", "ctrness", "predictor", ".sa.", "objectness")):
            nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        best = sorted(float(output["scores"].max()) for output in model.eval()(images()))
    (model.roi_heads if two_stages else model).score_thresh = sum(best[1:3]) / 2
    return model


@pytest.fixture(scope="module", params=["mask_rcnn", "retinanet", "fcos"])
def exported(request, tmp_path_factory) -> tuple[nn.Module, Path]:
    """A detector and its file; the test of the command exports a Faster R-CNN."""
    model, path = detector_of(request.param), tmp_path_factory.mktemp(request.param) / "model.onnx"
    agreement = export_detector(model, path, images=images()[:1], metadata={"kind": "detector"})
    assert agreement.unmatched == 0
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return model, path


def test_a_file_detects_what_the_detector_detects_in_images_of_any_size(exported):
    model, path = exported
    file = DetectorFile.of(load(path))
    counts = []
    with torch.no_grad():
        for image, output in zip(images(), file(images()), strict=True):
            (expected,) = model([image])
            counts.append(len(expected["boxes"]))
            assert output.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(output[name], expected[name], rtol=1e-4, atol=1e-3)
    assert min(counts) == 0 < max(counts)
    assert file.metadata["kind"] == "detector"
    assert file.metadata["input"] == [3, None, None]
    assert file.unaltered
    with pytest.raises(InputError, match="does not run on images of the shape"):
        file([torch.zeros(3, 1, 500)])  # nothing is left of it when its longer side has 96 pixels


def test_images_are_resized_to_the_sizes_of_torchvision():
    resize, ours = (
        GeneralizedRCNNTransform(8, 13, [0.0], [1.0]).eval(),
        detectors._Transform(8, 13, [0.0], [1.0]).eval(),
    )
    for height in range(5, 60, 2):
        for width in range(5, 60, 3):
            image = torch.zeros(1, height, width)
            assert ours.resize(image)[0].shape == resize.resize(image)[0].shape, image.shape


def test_a_file_that_detects_something_else_is_not_left_behind(exported, tmp_path, monkeypatch):
    model, path = exported
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "bbox" in name and name.endswith("bias"):
                parameter += 0.5
    monkeypatch.setattr(detectors, "_write", lambda model, image, unchecked, metadata: shutil.copy(path, unchecked))
    with pytest.raises(InputError, match=r"not written: it detects something else than PyTorch \(of \d+ objects [1-9]"):
        export_detector(other, tmp_path / "model.onnx", images=images())
    assert not list(tmp_path.iterdir())


class Bessel(nn.Module):
    """A detector whose boxes ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(8, 13, [0.0], [1.0])

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"boxes": torch.special.bessel_j0(image[0]), "labels": image, "scores": image} for image in images]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.onnx", "Bessel cannot be exported to ONNX: .*operator 'aten::special_bessel_j0'"),
        ("model.pt2", "to ONNX only, which ends in .onnx, got model.pt2: .*batched_nms"),
        ("nowhere/model.onnx", "must be a file in a folder that exists"),
    ],
)
def test_what_cannot_be_exported_is_named(name, message, tmp_path):
    with pytest.raises(InputError, match=message):
        export_detector(Bessel(), tmp_path / name, images=images())
    assert not list(tmp_path.iterdir())
