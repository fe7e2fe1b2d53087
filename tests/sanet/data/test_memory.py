"""Small images in memory: the same pixels and distributions as single images, keys, bounds and bad files."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp

from conftest import CPU
from shuffle_attention.sanet.data.datasets import Samples, open_split
from shuffle_attention.sanet.data.loading import evaluation_batches, training_batches
from shuffle_attention.sanet.data.memory import (
    EvaluationImages,
    TrainingImages,
    decode_small,
    random_crops,
    resize_matrices,
    resized,
)
from shuffle_attention.sanet.recipes.recipe import Recipe

RNG = np.random.default_rng(0)
PIXELS = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))


def samples_of(images: list, **options) -> Samples:
    return Samples([(image, n % 4) for n, image in enumerate(images)], range(len(images)), list("abcd"), **options)


def recipe_of(**fields) -> Recipe:
    given = {"img_size": 32, "batch_size": 4, "workers": 0, "device": "cpu", "crop_pct": 0.9, **PIXELS}
    return Recipe(**{**given, **fields})


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [17, 32, 48])
def test_crops_are_resized_as_pillow_does(interpolation, size):
    images = [noise(32, 32), noise(32, 32), noise(32, 32), noise(32, 32)]
    boxes = np.array([(0, 0, 32, 32), (3, 5, 20, 27), (31, 0, 1, 32), (10, 11, 9, 7)], float)
    top, left, height, width = boxes.T
    rows = resize_matrices(top, height, 32, size, interpolation)
    columns = resize_matrices(left, width, 32, size, interpolation)
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    ours = resized(pixels, torch.from_numpy(rows), torch.from_numpy(columns))
    for image, (y, x, h, w), each in zip(images, boxes, ours, strict=True):
        crop = image.crop((int(x), int(y), int(x + w), int(y + h)))
        theirs = crop.resize((size, size), str_to_pil_interp(interpolation))
        difference = (each - torch.from_numpy(np.array(theirs)).permute(2, 0, 1)).abs()
        assert not difference.any()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [(32, 32, (0.4, 1.0), (0.75, 4 / 3)), (20, 60, (0.6, 1.0), (0.75, 4 / 3)), (9, 7, (0.08, 1.0), (0.3, 3.0))],
)
def test_crops_have_the_distribution_of_timms(height, width, scale, ratio):
    """Sides and positions of 4,000 crops of each, by the two-sample test of Kolmogorov and Smirnov."""
    from scipy.stats import ks_2samp

    count, image = 4000, noise(height, width)
    sizes, draws = np.tile([height, width], (count, 1)), np.random.default_rng(1).random((count, 22))
    ours = random_crops(sizes, draws, scale, ratio)
    torch.manual_seed(0)
    theirs = [RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(count)]
    for one, other in zip(ours, np.array(theirs).T, strict=True):
        assert ks_2samp(one, other).pvalue > 1e-4
    top, left, h, w = ours
    for first, side, whole in ((top, h, height), (left, w, width)):
        assert first.min() >= 0
        assert (first + side).max() <= whole


def test_images_are_mirrored_and_normalised_as_single_ones_are():
    """The pixels of one image, whole or mirrored, are those of timm's transform, and half of them are mirrored."""
    image = noise(32, 32)
    samples = samples_of([image] * 200)
    options = {"size": 32, "scale": (1, 1), "ratio": (1, 1), "interpolation": "bicubic", "device": CPU.device, **PIXELS}
    images, labels = TrainingImages(samples, decode_small(samples, 1), hflip=0.5, **options).__getitems__(
        [(0, index) for index in range(200)]
    )
    plain = create_transform((3, 32, 32), is_training=True, no_aug=True, interpolation="bicubic", **PIXELS)(image)
    mirrored = [torch.equal(each, plain.flip(2)) for each in images]
    assert all(same or torch.equal(each, plain) for same, each in zip(mirrored, images, strict=True))
    assert 70 < sum(mirrored) < 130
    assert labels.tolist() == [index % 4 for index in range(200)]


def test_an_image_depends_on_its_key_alone():
    """Not on its batch, although images have several sizes, and not on the epochs before."""
    samples = samples_of([noise(20 + n, 40 - n) for n in range(8)], seed=3)
    recipe = recipe_of(hflip=0.5, scale=[0.3, 1.0])
    batches = training_batches(samples, recipe, CPU)
    assert isinstance(batches.loader.dataset, TrainingImages)
    data = batches.loader.dataset
    together, _ = data.__getitems__([(1, index) for index in range(8)])
    data.__getitems__([(0, 0)])
    for index in range(8):
        alone, _ = data.__getitems__([(1, index)])
        assert torch.equal(alone[0], together[index])
    other, _ = data.__getitems__([(2, 0)])
    assert not torch.allclose(other[0], together[0], atol=0.1)
    whole = list(batches.epoch(0))
    (rest,) = batches.epoch(0, start=1)
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[1], strict=True))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_evaluated_from_memory_the_pixels_are_the_same(mode, interpolation):
    samples = samples_of([noise(30 + n, 50 - n, mode) for n in range(6)], reading={"mode": mode})
    one = {"in_chans": 1, "mean": [0.5], "std": [0.3]} if mode == "L" else {}
    recipe = recipe_of(interpolation=interpolation, **one)
    kept = evaluation_batches(samples, recipe, CPU, 4, repeated=True)
    assert isinstance(kept.dataset, EvaluationImages)
    for a, b in zip(kept, evaluation_batches(samples, recipe, CPU, 4), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_unreadable_images_are_replaced_in_training_and_not_counted_in_evaluation(tmp_path):
    for n in range(4):
        noise(16, 16).save(tmp_path / f"{n}.png")
    (tmp_path / "1.png").write_bytes(b"broken")
    samples = samples_of([str(tmp_path / f"{n}.png") for n in range(4)])
    data = training_batches(samples, recipe_of(), CPU).loader.dataset
    samples.failed.fill_(False)
    assert data.__getitems__([(0, index) for index in range(4)])[1].tolist() == [0, 2, 2, 3]
    assert samples.failures() == ["1"]
    samples.failed.fill_(False)
    (batch,) = evaluation_batches(samples, recipe_of(), CPU, 4, repeated=True)
    assert batch[1].tolist() == [0, -1, 2, 3]
    assert samples.failures() == ["1"]


@pytest.mark.parametrize(
    ("side", "fields", "message"),
    [
        (97, {}, ""),
        (32, {"cache_mb": 0}, ""),
        (96, {"auto_augment": "rand-m5"}, "images are read and augmented one by one, since auto_augment works on"),
        (32, {"color_jitter": 0.2, "random_erasing": 0.1}, "since color_jitter, random_erasing works on single images"),
    ],
)
def test_all_others_are_read_and_augmented_one_by_one(side, fields, message, caplog):
    samples = samples_of([noise(side, side + 8)] * 8)
    with caplog.at_level("INFO"):
        batches = training_batches(samples, recipe_of(**fields), CPU)
    assert batches.loader.dataset is samples
    assert message in caplog.text if message else not caplog.text


def test_memory_is_bounded(caplog):
    images = [noise(64, 64)] * 90  # 1.1 MB
    samples = samples_of(images)
    assert decode_small(samples, 2) is not None
    with caplog.at_level("INFO"):
        assert decode_small(samples, 1) is None
    assert "90 images of up to 96 pixels need more than the 1 MB of --cache-mb (2 MB or more)" in caplog.text
    # Those that are looked at first are smaller than the others.
    uneven = samples_of([noise(8, 8) if n % 6 == 0 else noise(64, 96) for n in range(90)])
    assert decode_small(uneven, 1) is None
    assert decode_small(samples_of([noise(8, 8)] * 30 + [noise(200, 200)]), 9) is None
    # Crops of an input that is much larger than the images are not kept.
    loader = evaluation_batches(samples, recipe_of(img_size=256, cache_mb=2), CPU, 4, repeated=True)
    assert not isinstance(loader.dataset, EvaluationImages)


def test_the_digits_are_kept_in_memory():
    recipe = recipe_of(batch_size=64)
    batches = training_batches(open_split(recipe, "train"), recipe, CPU)
    images, labels = next(batches.epoch(0))
    assert images.shape == (64, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
