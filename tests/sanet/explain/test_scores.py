"""Figures of maps, against what they are by hand for networks whose answer is known."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from shuffle_attention.errors import InputError
from shuffle_attention.explain import faithfulness
from shuffle_attention.sanet.data.coco_reading import read_coco
from shuffle_attention.sanet.data.image_files import ImageFile
from shuffle_attention.sanet.explain.pointing_game import boxes_of, hits
from shuffle_attention.sanet.explain.scoring import Scored, score
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.predictor import Classifier, View

torchcam = pytest.mark.skipif(find_spec("torchcam") is None, reason="torchcam, which needs Python 3.11")


class Corner(nn.Module):
    """Sees class 0 in how bright the upper left quarter is, and nothing else."""

    def __init__(self, side: int):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.conv.weight)
        self.register_buffer("where", torch.zeros(side, side))
        self.where[: side // 2, : side // 2] = 4 / side**2

    def forward(self, images: Tensor) -> Tensor:
        first = 4 * (self.conv(images)[:, 0] * self.where).sum((1, 2))
        return torch.stack([first, torch.zeros_like(first)], dim=1)


def sigmoid(x: float) -> float:
    return 1 / (1 + np.exp(-x))


@torchcam
def test_deletion_and_insertion_are_the_areas_by_hand():
    """A map that is right takes all evidence away with its first quarter; one that is wrong with its last."""
    model = Corner(4)
    image = torch.ones(1, 1, 4, 4)
    right = model.where[None] / model.where.max()
    (found,) = faithfulness(model, image, right, torch.tensor([0]), steps=16)
    curve = [sigmoid(4 - step) for step in range(4)] + [0.5] * 13
    assert found.deletion == pytest.approx(np.trapezoid(curve, dx=1 / 16), abs=1e-6)
    # A plane that is the same everywhere stays so when it is blurred.
    assert found.insertion == pytest.approx(sigmoid(4), abs=1e-6)
    assert (found.drop, found.increase) == (pytest.approx(0, abs=1e-4), 0)

    (wrong,) = faithfulness(model, image, 1 - right, torch.tensor([0]), steps=16)
    curve = [sigmoid(4)] * 13 + [sigmoid(4 - step) for step in range(1, 5)]
    assert wrong.deletion == pytest.approx(np.trapezoid(curve, dx=1 / 16), abs=1e-6)
    assert wrong.drop == pytest.approx(100 * (sigmoid(4) - 0.5) / sigmoid(4), abs=1e-3)


@torchcam
def test_insertion_starts_blurred_and_ends_with_the_image():
    model = Corner(8)
    image = torch.zeros(1, 1, 8, 8)
    image[..., :4, :4] = 1
    (found,) = faithfulness(model, image, model.where[None], torch.tensor([0]), steps=1)
    from torchvision.transforms.functional import gaussian_blur

    start = model(gaussian_blur(image, [3, 3], [5 * 8 / 224] * 2)).softmax(1)[0, 0].item()
    assert start < sigmoid(4)
    assert found.insertion == pytest.approx((start + sigmoid(4)) / 2, abs=1e-5)
    assert found.deletion == pytest.approx((0.5 + sigmoid(4)) / 2, abs=1e-5)


@torchcam
def test_an_increase_is_counted_where_the_map_leaves_out_what_speaks_against_the_class():
    model = Corner(4)
    image = -torch.ones(1, 1, 4, 4)
    share = 1 - model.where[None] / model.where.max()
    (found,) = faithfulness(model, image, share, torch.tensor([0]))
    assert (found.drop, found.increase) == (0, 100)


@torchcam
def test_several_images_are_what_each_is_alone_and_the_network_is_left_as_it_was():
    torch.manual_seed(0)
    model = Corner(6).train()
    images, maps, classes = torch.randn(3, 1, 6, 6), torch.rand(3, 6, 6), torch.tensor([0, 1, 0])
    together = faithfulness(model, images, maps, classes, steps=5, batch_size=4)
    for number, found in enumerate(together):
        part = slice(number, number + 1)
        (alone,) = faithfulness(model, images[part], maps[part], classes[part], steps=5)
        assert found.to_dict() == pytest.approx(alone.to_dict(), abs=1e-5)
    assert model.training


@torchcam
def test_shapes_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="maps must be"):
        faithfulness(Corner(4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2), torch.tensor([0]))
    with pytest.raises(InputError, match="steps must be at least 1"):
        faithfulness(Corner(4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([0]), steps=0)
    with pytest.raises(InputError, match="classes must be from 0 to 1, got 2"):
        faithfulness(Corner(4), torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), torch.tensor([2]))


def test_the_highest_place_is_in_a_box_or_not():
    heat = torch.zeros(8, 10)
    heat[2, 7] = 1
    assert hits(heat, [(0, 0, 2, 2), (7, 2, 1, 1)])
    assert not hits(heat, [(8, 2, 2, 2)])
    assert hits(heat, [(8, 2, 2, 2)], tolerance=0.5)
    assert not hits(heat, [])
    assert not hits(torch.zeros(4, 4), [(0, 0, 4, 4)])


def test_boxes_follow_the_resize_and_the_crop():
    """A bright rectangle ends up where its box does, in a picture that is not square."""
    view = View(Recipe(img_size=32, crop_pct=0.8, mean=[0.0], std=[1.0], in_chans=1, interpolation="bilinear"))
    for size in ((120, 80), (80, 120)):
        pixels = np.zeros(size[::-1], np.uint8)
        pixels[40:60, 30:70] = 255
        ((x, y, width, height),) = view.boxes([(30, 40, 40, 20)], size)
        seen = view.transform(Image.fromarray(pixels))[0] > 0.5
        rows, columns = np.nonzero(seen.numpy())
        assert (columns.min(), columns.max() + 1) == pytest.approx((x, x + width), abs=1)
        assert (rows.min(), rows.max() + 1) == pytest.approx((y, y + height), abs=1)
    assert view.boxes([(0, 0, 5, 5)], (120, 80)) == []
    ((x, _, width, _),) = view.boxes([(0, 0, 120, 80)], (120, 80))
    assert (x, width) == (0, 32)


def folder_with_boxes(root) -> tuple[list[ImageFile], str]:
    """Two images with a bright corner and their boxes: of the first the corner, of the second the opposite one."""
    images, annotations, pictures = [], [], []
    for number, box in enumerate(([0, 0, 32, 32], [32, 32, 32, 32]), 1):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[8:24, 8:24] = 255
        Image.fromarray(pixels).save(root / f"{number}.png")
        pictures.append(ImageFile(root / f"{number}.png", str(number)))
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        annotations.append({"id": number, "image_id": number, "category_id": 5, "bbox": box, "iscrowd": 0, "area": 1})
    annotations.append({**annotations[0], "id": 3, "category_id": 6})
    categories = [{"id": 5, "name": "Corner"}, {"id": 6, "name": "stranger"}]
    path = root / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return pictures, str(path)


@pytest.fixture
def subject() -> Classifier:
    recipe = Recipe(img_size=64, crop_pct=1.0, mean=[0.0], std=[1.0], in_chans=1)
    return Classifier(
        label="corner",
        source="corner.pt",
        model=Corner(64).eval(),
        recipe=recipe,
        classes=["corner", "nothing"],
        num_classes=2,
    )


@torchcam
def test_a_network_is_scored_over_a_folder(subject, tmp_path):
    pictures, annotations = folder_with_boxes(tmp_path)
    coco = read_coco(annotations, tmp_path)
    assert [(b.image.name, b.target, b.boxes) for b in boxes_of(coco, pictures, subject.classes, 2)] == [
        ("1", 0, [(0, 0, 32, 32)]),
        ("2", 0, [(32, 32, 32, 32)]),
    ]
    seen = []
    found = score(subject, pictures, method="layercam", layer="conv", coco=coco, batch_size=1, watch=seen.append)
    assert seen == [1, 1]
    assert found.layer == "conv"
    assert [row["pointing"] for row in found.rows] == [100, 0]
    assert found.rows[0]["class"] == "corner"
    whole = found.summary("pointing")
    assert (whole.mean, whole.count) == (50, 2)
    assert "pointing" not in score(subject, pictures, method="layercam", layer="conv").rows[0]
    with pytest.raises(InputError, match="none of the categories .* is a class of the model: Corner, stranger"):
        boxes_of(coco, pictures, ["other", "names"], 2)
    with pytest.raises(InputError, match="has no box of Corner in these images"):
        boxes_of(coco, [], subject.classes, 2)
    with pytest.raises(InputError, match="there are no images"):
        score(subject, [])


def test_networks_are_compared_image_by_image():
    first = Scored("a", "layer", [{"deletion": 0.5}, {"deletion": 0.3}, {}])
    second = Scored("b", "layer", [{"deletion": 0.6}, {"deletion": 0.6}, {"deletion": 9.0}])
    difference = second.difference("deletion", first)
    assert difference.mean == pytest.approx(0.2)
    # Student's with one degree of freedom: 12.706 standard errors, each 0.1.
    assert (difference.low, difference.high) == pytest.approx((0.2 - 1.2706, 0.2 + 1.2706), abs=1e-3)
    written = second.to_dict(first)
    assert written["deletion"]["to_the_first"]["mean"] == difference.mean
    assert "to_the_first" not in first.to_dict()["deletion"]
    assert "insertion" not in written
