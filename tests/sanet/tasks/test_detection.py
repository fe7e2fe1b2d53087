"""Detectors: torchvision's on other backbones, what of them is frozen and loaded, what they cost, one training step."""

import copy

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torchvision import tv_tensors
from torchvision.models import detection as torchvision_detection

from conftest import CPU
from shuffle_attention import ShuffleAttention, attention_names, load_checkpoint
from shuffle_attention.checkpoints import CheckpointError
from shuffle_attention.errors import DataError, InputError
from shuffle_attention.kernels.backends import cpu as cpu_kernels
from shuffle_attention.models import fused_block
from shuffle_attention.models import sa_resnet as models
from shuffle_attention.models.attention_resnet import resnet_with
from shuffle_attention.models.detectors import ARCHITECTURES, create_detector
from shuffle_attention.models.pyramid import create_body
from shuffle_attention.sanet.data.coco import CocoData
from shuffle_attention.sanet.profile.detectors import detector_cost
from shuffle_attention.sanet.tasks.detection.coco_scores import evaluate_detector
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe
from shuffle_attention.sanet.tasks.detection.samples import (
    CocoSamples,
    collate,
    detection_transform,
    digits_coco,
    training_transform,
)
from shuffle_attention.sanet.tasks.task import Trainer

SMALL = {"min_size": 64, "max_size": 96}
# Few of what torchvision takes hundreds of.
FEW = {"rpn_post_nms_top_n_train": 50, "box_batch_size_per_image": 8, "box_detections_per_img": 5}


def small(arch: str) -> dict[str, int]:
    return {**SMALL, **(FEW if "rcnn" in arch else {})}


TORCHVISION = {
    "faster_rcnn": torchvision_detection.fasterrcnn_resnet50_fpn,
    "mask_rcnn": torchvision_detection.maskrcnn_resnet50_fpn,
    "retinanet": torchvision_detection.retinanet_resnet50_fpn,
    "fcos": torchvision_detection.fcos_resnet50_fpn,
}


def batch() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """An image with two objects and one, of another size, without any."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 80, generator=generator), torch.rand(3, 72, 64, generator=generator)]
    masks = torch.zeros(2, 64, 80, dtype=torch.uint8)
    masks[0, 8:40, 4:36] = masks[1, 20:60, 30:76] = 1
    boxes = torch.tensor([[4.0, 8, 36, 40], [30, 20, 76, 60]])
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks},
        {**nothing, "masks": torch.zeros(0, 72, 64, dtype=torch.uint8)},
    ]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> tuple[nn.Module, str]:
    """A classification network with statistics and gates of its own, and its checkpoint."""
    torch.manual_seed(0)
    model = timm.create_model("sa_resnet18", num_classes=7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
        if isinstance(module, ShuffleAttention):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.5)
    path = tmp_path_factory.mktemp("weights") / "sa_resnet18.pth.tar"
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, path)
    return model, str(path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_on_a_plain_resnet_it_is_torchvisions_network(arch):
    with torch.device("meta"):
        published = TORCHVISION[arch](weights=None, weights_backbone=None)
        ours = create_detector(arch, "resnet50")
    shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (ours, published)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("arch", ["mask_rcnn", "retinanet"])
def test_with_torchvisions_weights_it_computes_the_same(arch):
    torch.manual_seed(0)
    build = torchvision_detection.backbone_utils._resnet_fpn_extractor
    layers = {"returned_layers": [2, 3, 4], "extra_blocks": ARCHITECTURES["retinanet"].extra_blocks(256)}
    resnet = torchvision_detection.backbone_utils.resnet.resnet18(weights=None)
    backbone = build(resnet, 5, **(layers if arch == "retinanet" else {}))
    published = ARCHITECTURES[arch].network(backbone, 4, **small(arch))
    ours = create_detector(arch, "resnet18", 4, **small(arch))
    ours.load_state_dict(published.state_dict())
    images, targets = batch()
    losses = []
    for model in (published, ours):
        torch.manual_seed(1)  # proposals are sampled
        losses.append({name: float(loss.detach()) for name, loss in model(images, targets).items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with torch.no_grad():
        expected, found = (model.eval()(images) for model in (published, ours))
    for a, b in zip(expected, found, strict=True):
        for key in a:
            torch.testing.assert_close(b[key], a[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_learns_from_objects_and_from_images_without_any(arch):
    torch.manual_seed(0)
    model = create_detector(arch, "sa_resnet18", 4, **small(arch))
    images, targets = batch()
    parts = Trainer(model)(images, targets)
    assert sorted(parts) == sorted(ARCHITECTURES[arch].losses)
    torch.stack(list(parts.values())).sum().backward()
    # The first convolution is the furthest from the losses; the box head's is beyond the choice of proposals.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.backbone.body.conv1.weight.grad.abs().sum() > 0
    assert model.backbone.body.layer4[1].sa.sweight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    for image, output in zip(images, outputs, strict=True):
        height, width = image.shape[1:]
        boxes = output["boxes"]
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height])).all()
        assert ("masks" in output) == ARCHITECTURES[arch].masks
        if "masks" in output:
            assert output["masks"].shape == (len(boxes), 1, height, width)


def test_in_mixed_precision_losses_gradients_and_boxes_are_finite():
    """Mask R-CNN has all the parts of the others."""
    torch.manual_seed(0)
    model = create_detector("mask_rcnn", "sa_resnet18", 4, **small("mask_rcnn"))
    with torch.autocast("cpu", torch.bfloat16):
        loss = torch.stack(list(Trainer(model)(*batch()).values())).sum()
        with torch.no_grad():
            outputs = model.eval()(batch()[0])
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(output["boxes"].isfinite().all() for output in outputs)


@pytest.mark.parametrize("attention", attention_names())
def test_every_attention_of_the_family_is_a_backbone(attention):
    name, options = resnet_with(attention, 18)
    model = create_detector("retinanet", name, 3, **SMALL, backbone_options=options).eval()
    with torch.no_grad():
        levels = model.backbone(torch.rand(1, 3, 64, 64))
    assert {name: tuple(level.shape[1:]) for name, level in levels.items()} == {
        "0": (256, 8, 8),
        "1": (256, 4, 4),
        "2": (256, 2, 2),
        "p6": (256, 1, 1),
        "p7": (256, 1, 1),
    }


def test_other_networks_of_timm_are_backbones_too():
    model = create_detector("faster_rcnn", "convnext_atto", 3, **SMALL, trainable_layers=2).eval()
    with torch.no_grad():
        assert list(model.backbone(torch.rand(1, 3, 64, 64))) == ["0", "1", "2", "3", "pool"]
    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert trained == {"stages_2", "stages_3"}


STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


@pytest.mark.parametrize(
    ("trainable", "first"), [(0, None), (1, "layer4"), (2, "layer3"), (3, "layer2"), (4, "layer1"), (5, "conv1")]
)
def test_the_last_stages_are_trained(trainable, first):
    with torch.device("meta"):
        model = create_detector("retinanet", "sa_resnet18", trainable_layers=trainable, frozen_norm=False)
    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert trained == (set(STAGES[STAGES.index(first) :]) if first else set())
    assert all(p.requires_grad for p in model.backbone.fpn.parameters())
    assert all(p.requires_grad for p in model.head.parameters())


def test_a_classification_checkpoint_fills_the_backbone_and_freezes_its_norms(classifier):
    network, path = classifier
    model = create_detector("faster_rcnn", "sa_resnet18", 4, weights=path, **small("faster_rcnn"))
    expected = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    body = model.backbone.body.state_dict()
    assert body.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(body[key], value, rtol=0, atol=0)
    trained = {name.split(".")[0] for name, p in model.backbone.body.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    model.train()
    images, targets = batch()
    sum(model(images, targets).values()).backward()
    for name, module in model.backbone.body.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.grad is None
            torch.testing.assert_close(module.running_mean, network.get_submodule(name).running_mean, rtol=0, atol=0)
    assert model.backbone.body.layer4[1].sa.cweight.grad is not None
    assert model.backbone.body.layer1[1].sa.cweight.grad is None


def test_weights_of_another_network_are_refused(classifier):
    with pytest.raises(CheckpointError, match="unexpected"):
        create_detector("faster_rcnn", "resnet18", 3, weights=classifier[1])
    with pytest.raises(FileNotFoundError):
        create_detector("faster_rcnn", "sa_resnet18", 3, weights="nothing.pth")
    with_permission = create_detector("retinanet", "resnet18", 3, weights=classifier[1], may_differ=["fc.*", "*.sa.*"])
    torch.testing.assert_close(with_permission.backbone.body.conv1.weight, classifier[0].conv1.weight)


@pytest.mark.skipif(not cpu_kernels.loaded, reason="the CPU kernels were not built")
def test_frozen_norms_are_served_by_the_fused_end_of_a_block(classifier, monkeypatch):
    calls, op = [], fused_block.block_tail

    def counted(u, shortcut, *arguments, **options):
        if shortcut is not None:
            calls.append(True)
        return op(u, shortcut, *arguments, **options)

    monkeypatch.setattr(fused_block, "block_tail", counted)
    model = create_detector("retinanet", "sa_resnet18", 3, weights=classifier[1], trainable_layers=5).double().train()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, models.SABasicBlock):
            module.act2.register_forward_hook(lambda *_: None)  # lets the block run its modules
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y, expected = model.backbone(x), plain.backbone(x)
    assert len(calls) == 8
    for level in y:
        torch.testing.assert_close(y[level], expected[level], rtol=1e-9, atol=1e-9)
    for levels in (y, expected):
        sum(level.square().sum() for level in levels.values()).backward()
    for (name, p), q in zip(model.backbone.named_parameters(), plain.backbone.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None)
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-7, msg=name)


def test_pixels_are_normalised_as_the_backbone_was_trained():
    half = create_detector("retinanet", "tf_efficientnet_lite0", 3).transform
    assert (half.image_mean, half.image_std) == ([0.5] * 3, [0.5] * 3)
    own = create_detector("retinanet", "resnet10t", 3, image_std=[0.2] * 3).transform
    assert (own.image_mean, own.image_std) == ([0.485, 0.456, 0.406], [0.2] * 3)


def test_parameters_are_the_published_ones():
    """The published 41.53 M: 80 classes, stem and first stage not counted, no box for the background."""
    with torch.device("meta"):
        model = create_detector("faster_rcnn", "resnet50", 81, trainable_layers=3, frozen_norm=False)
        attentive = create_detector("faster_rcnn", "sa_resnet50", 81)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable - 4 * (1024 + 1) == 41_527_712
    total = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in attentive.parameters()) == total + 708


def test_multiply_adds_are_the_published_ones():
    """207.07 G at 1280 x 800, near the published 207.18 G, counted by modules: of norms two for each value, of
    activations and pooling one, and biases. Its RPN has a functional ReLU, which does not count."""
    with torch.device("meta"):
        model = create_detector("faster_rcnn", "resnet50", 81).eval()
        images, proposals = torch.empty(1, 3, 800, 1280), torch.empty(1000, 256, 7, 7)
    products = others = 0

    def count(module, inputs, output):
        nonlocal products, others
        if isinstance(module, nn.Conv2d | nn.Linear):
            products += output.numel() * module.weight[0].numel()
            others += 0 if module.bias is None else output.numel()
        elif isinstance(module, nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
            others += inputs[0].numel() * (2 if isinstance(module, nn.BatchNorm2d) else 1)

    skipped = {module for module in model.rpn.modules() if isinstance(module, nn.ReLU)}
    for module in set(model.modules()) - skipped:
        module.register_forward_hook(count)
    with torch.no_grad():
        model.rpn.head(list(model.backbone(images).values()))
        model.roi_heads.box_predictor(model.roi_heads.box_head(proposals))
    assert products == 206_334_448_640
    assert round((products + others) / 1e9, 2) == 207.07


def test_multiply_adds_are_those_of_the_parts():
    model = create_detector("faster_rcnn", "resnet10t", 5).train()
    cost = detector_cost(model, 60, 100)  # padded to 64 x 128
    features = 256 * 7 * 7
    assert cost.by_part["roi_heads"] == 1000 * (features * 1024 + 1024 * 1024 + 1024 * 5 * (1 + 4))
    places = [16 * 32, 8 * 16, 4 * 8, 2 * 4]
    levels = zip(places, model.backbone.body.feature_info.channels(), strict=True)
    assert cost.by_part["backbone.fpn"] == sum(n * (256 * channels + 256 * 256 * 9) for n, channels in levels)
    assert cost.by_part["rpn"] == sum([*places, 1 * 2]) * (256 * 256 * 9 + 256 * 3 * (1 + 4))
    assert cost.macs == sum(cost.by_part.values())
    assert model.training
    assert model.rpn.nms_thresh == 0.7


BAD = {
    "arch": (("yolo", "sa_resnet18"), {}, "no detector 'yolo'; there are faster_rcnn"),
    "backbone": (("fcos", "sa_resnet17"), {}, "no backbone 'sa_resnet17'"),
    "strides": (("fcos", "vit_tiny_patch16_224"), {}, "maps .* at strides"),
    "channels-last": (("fcos", "swin_tiny_patch4_window7_224"), {}, "NHWC"),
    "classes": (("fcos", "sa_resnet18", 1), {}, "at least 2"),
    "stages": (("fcos", "sa_resnet18"), {"trainable_layers": 6}, "from 0 to 5"),
    "pyramid": (("retinanet", "sa_resnet18"), {"pyramid_channels": 48}, "multiple of 32 from 32 on, got 48"),
    # Its group norms would have one value per group on a level of one pixel.
    "narrow-pyramid": (("fcos", "sa_resnet18"), {"pyramid_channels": 32}, "of fcos .* from 64 on, got 32"),
    "two-sources": (("fcos", "sa_resnet18"), {"weights": "a.pth", "pretrained": True}, "not both"),
    "argument": (
        ("fcos", "sa_resnet18"),
        {"nms_treshold": 0.5},
        "fcos has no argument 'nms_treshold'; did you mean nms_thresh",
    ),
    "value": (("mask_rcnn", "sa_resnet18"), {"min_size": 64, "box_roi_pool": 3}, "box_roi_pool=3 cannot be used"),
    "no-anchors": (("fcos", "sa_resnet18"), {"anchor_sizes": (8, 16, 32, 64, 128)}, "fcos has no anchors"),
    "anchors": (("retinanet", "sa_resnet18"), {"anchor_sizes": (8, 16)}, "five lengths, .* got \\(8, 16\\)"),
    "backbone-argument": (("fcos", "sa_resnet18"), {"backbone_options": {"nope": 1}}, "nope=1 cannot be used"),
}


@pytest.mark.parametrize("case", BAD)
def test_detectors_that_cannot_be_built_are_refused(case):
    arguments, options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        create_detector(*arguments, **options)


@pytest.mark.parametrize("arch", ["mask_rcnn", "retinanet"])
def test_anchors_differ_from_torchvisions_in_size_alone(arch):
    with torch.device("meta"):
        models_ = [
            create_detector(arch, "resnet10t", 3, anchor_sizes=sizes)
            for sizes in (None, (32, 64, 128, 256, 512), (8, 16, 32, 64, 128))
        ]
    default, same, small = (model.rpn if arch == "mask_rcnn" else model for model in models_)
    assert same.anchor_generator.sizes == default.anchor_generator.sizes
    assert same.anchor_generator.aspect_ratios == default.anchor_generator.aspect_ratios
    assert small.anchor_generator.sizes[2] == default.anchor_generator.sizes[0]


def test_strides_are_those_asked_for():
    assert create_body("resnet10t", (16, 32), pretrained=False, options={}).feature_info.reduction() == [16, 32]


def test_a_checkpoint_of_the_task_restores_the_detector(tmp_path):
    torch.manual_seed(0)
    task = Trainer(create_detector("retinanet", "sa_resnet18", 3))
    task.setup_ema(decay=0.9)
    path = tmp_path / "last.pt"
    torch.save({**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}, path)
    other = create_detector("retinanet", "sa_resnet18", 3)
    assert load_checkpoint(other, path, ema=False).weights == "state_dict"
    for key, value in task.trainable_module.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=0, atol=0)


class Oracle(nn.Module):
    """Finds what is there, in the order of the images, and nothing on the second one."""

    def __init__(self, samples: CocoSamples):
        super().__init__()
        self.targets = iter([samples[index][1] for index in range(len(samples))])
        self.blind = samples.data.images[1]["id"]

    def forward(self, images):
        outputs = []
        for target in [next(self.targets) for _ in images]:
            seen = slice(0, 0 if target["image_id"] == self.blind else None)
            found = {"boxes": target["boxes"][seen], "labels": target["labels"][seen]}
            scores = torch.ones(len(found["labels"]))
            outputs.append({**found, "scores": scores, "masks": target["masks"][seen][:, None].float()})
        return outputs


@pytest.fixture(scope="module")
def data() -> CocoData:
    return digits_coco("val", 6, size=96, seed=3)


def test_an_evaluation_scores_all_images_and_leaves_things_as_they_were(data):
    samples = CocoSamples(data, masks=True)
    samples.transform = detection_transform(training=False)
    batches = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate)
    model, seen = Oracle(samples).train(), []
    before = torch.get_rng_state()
    scores = evaluate_detector(model, batches, data, CPU, watch=seen.append)
    assert torch.equal(before, torch.get_rng_state())
    assert model.training
    assert (scores.images, scores.unreadable, seen) == (6, 0, [4, 2])
    missed = len(data.objects(1))
    assert len(scores.results) == len(data.annotations) - missed
    assert 0.5 < scores.metrics["box_AP"] < 1
    assert scores.metrics["box_AP"] == pytest.approx(scores.metrics["mask_AP"])


def test_an_unreadable_image_is_counted_and_not_scored(data, tmp_path):
    data.write(tmp_path, "val")
    pictures = [str(tmp_path / "val" / image["file_name"]) for image in data.images]
    (tmp_path / "val" / data.images[1]["file_name"]).write_bytes(b"no picture")
    spoilt = CocoData(data.images, pictures, data.annotations, data.categories, "spoilt")
    samples = CocoSamples(spoilt, masks=True)
    samples.transform = detection_transform(training=False)
    batches = torch.utils.data.DataLoader(samples, batch_size=1, collate_fn=collate)
    scores = evaluate_detector(Oracle(samples), batches, spoilt, CPU)
    assert (scores.images, scores.unreadable) == (5, 1)
    assert scores.metrics["box_AP"] == 1
    assert samples.failures() == [data.images[1]["file_name"]]
    with pytest.raises(DataError, match="no image could be evaluated"):
        evaluate_detector(Oracle(samples), [], spoilt, CPU)


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        ({"photometric": 1.0}, {64}),
        ({"zoom_out": 1.0}, range(65, 64 * 4 + 1)),
        ({"iou_crop": 1.0}, range(1, 65)),
        ({"scale_jitter": [0.1, 2.0], "min_size": [48]}, {48}),
    ],
)
def test_augmentation_moves_boxes_and_masks_with_the_image(fields, sides):
    """Boxes remain those of the ink of their masks, also in an image without objects."""
    data = digits_coco("train", 6, size=64, digits=(1, 3))
    samples = CocoSamples(data, masks=True, seed=1)
    samples.transform = training_transform(DetectionRecipe(hflip=0.0, **fields))
    plain = CocoSamples(data, masks=True)
    plain.transform = detection_transform(training=False)
    changed = 0
    for index in range(6):
        image, target = samples[0, index]
        assert set(image.shape[1:]) <= set(sides)
        assert 0 <= image.min() <= image.max() <= 1
        assert len(target["boxes"]) == len(target["masks"]) == len(target["labels"])
        for (x1, y1, x2, y2), mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
            ys, xs = mask.nonzero().unbind(1)
            if len(xs) and "scale_jitter" not in fields:
                assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx((x1, y1, x2, y2), abs=1)
        same, _ = samples[0, index]
        assert torch.equal(image, same)
        whole, _ = plain[index]
        changed += whole.shape != image.shape or not torch.equal(whole, image)
    assert changed >= 4
    empty = {"boxes": tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(64, 64))}  # pyright: ignore
    empty |= {"labels": torch.zeros(0, dtype=torch.int64), "masks": tv_tensors.Mask(torch.zeros(0, 64, 64))}
    for _ in range(5):
        _, target = samples.transform(Image.new("RGB", (64, 64)), empty)
        assert target["boxes"].shape == (0, 4)
