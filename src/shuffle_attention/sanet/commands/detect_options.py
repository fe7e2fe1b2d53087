"""The command ``sanet detect``: train, evaluate and use detectors."""

import argparse
from typing import Any

import yaml

from ..recipes.arguments import add_evaluation, add_fields, add_training, overrides
from ..tasks.detection.recipe import DetectionRecipe

_EVALUATION_FIELDS = (
    "data val_annotations val_images workers check_images skip_bad_images min_size max_size device precision "
    "channels_last"
)


def add_detect(commands: Any) -> None:
    """Adds ``detect`` with its own commands to those of ``sanet``."""
    detect = commands.add_parser("detect", help="object detection and instance segmentation", allow_abbrev=False)
    jobs = detect.add_subparsers(required=True, metavar="COMMAND")

    add_training(jobs, DetectionRecipe, _train)
    held = "checkpoint of sanet detect train"
    evaluate = add_evaluation(
        jobs, DetectionRecipe, _evaluate, checkpoint=held, batch_size=4, fields=_EVALUATION_FIELDS
    )
    evaluate.add_argument("--results", metavar="FILE", help="write what was found there, as COCO's results")

    predict = jobs.add_parser(
        "predict",
        help="find objects in images and draw them",
        description="Draw what a detector finds, and write it as JSON.",
        allow_abbrev=False,
    )
    predict.set_defaults(run=_predict)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="files, and folders with all that is inside them")
    predict.add_argument("--checkpoint", required=True, metavar="FILE", help="checkpoint of sanet detect train")
    predict.add_argument("--output", required=True, metavar="DIR", help="folder for pictures and detections.json")
    predict.add_argument("--threshold", type=float, default=0.5, metavar="X", help="least score that counts (0.5)")
    predict.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights; where there are some")
    add_fields(predict, DetectionRecipe, only=["skip_bad_images", "min_size", "max_size", "device", "precision"])

    profile = jobs.add_parser(
        "profile",
        help="measure what detectors cost",
        description="Parameters, multiply-adds and time of a detector on several backbones, beside the first of them.",
        allow_abbrev=False,
    )
    profile.set_defaults(run=_profile)
    profile.add_argument("backbones", nargs="+", metavar="BACKBONE", help="networks of timm or of this package")
    profile.add_argument("--arch", default="mask_rcnn", metavar="NAME", help="detector (mask_rcnn)")
    profile.add_argument(
        "--backbone-args", type=yaml.safe_load, default={}, metavar="VALUE", help="of timm.create_model, as YAML"
    )
    profile.add_argument("--num-classes", type=int, default=81, metavar="N", help="background among them (81)")
    profile.add_argument("--size", type=int, nargs=2, default=[800, 1333], metavar="N", help="of images (800 1333)")
    profile.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at a time (1)")
    profile.add_argument(
        "--frozen-norm", action=argparse.BooleanOptionalAction, default=True, help="as when fine-tuned"
    )
    profile.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps, ... (auto)")
    profile.add_argument("--threads", type=int, metavar="N", help="threads of the CPU; PyTorch's choice by default")
    profile.add_argument("--repetitions", type=int, default=7, metavar="N", help="how often each is timed (7)")
    profile.add_argument("--json", metavar="FILE", help="write the figures there")


def _train(options: argparse.Namespace) -> int:
    from ..tasks.detection.task import Detection
    from .train import train_command

    return train_command(Detection, options.recipe, overrides(options), options.output, options.resume)


def _evaluate(options: argparse.Namespace) -> int:
    from .detect import evaluate_command

    return evaluate_command(
        options.checkpoint,
        overrides(options),
        options.batch_size,
        ema=options.ema,
        json_file=options.json,
        results_file=options.results,
    )


def _predict(options: argparse.Namespace) -> int:
    from .detect import predict_command

    return predict_command(
        options.images,
        options.checkpoint,
        options.output,
        overrides(options),
        threshold=options.threshold,
        ema=options.ema,
    )


def _profile(options: argparse.Namespace) -> int:
    from .detect_profile import profile_command

    return profile_command(
        options.backbones,
        options.arch,
        backbone_args=options.backbone_args,
        num_classes=options.num_classes,
        size=tuple(options.size),
        batch_size=options.batch_size,
        frozen_norm=options.frozen_norm,
        device=options.device,
        threads=options.threads,
        repetitions=options.repetitions,
        json_file=options.json,
    )
