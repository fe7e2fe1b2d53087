"""The command ``sanet``: one subcommand a job, each of which imports what it needs when it is asked for."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from .cli_explain import add_explain
from .cli_fields import add_evaluation, add_fields, add_training, overrides
from .cli_report import add_report
from .demo.cli import add_demo
from .detection.cli import add_detect
from .errors import BAD_INPUT, InputError
from .recipe import Recipe, recipe_names

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for input that cannot be used, 128 + n for signal n."""
    options = _parser().parse_args(arguments)
    logger = logging.getLogger(__package__)
    printer = _Printer()
    logger.addHandler(printer)
    try:
        return options.run(options)
    except (InputError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted before anything was to be saved", file=sys.stderr)
        return INTERRUPTED
    finally:
        logger.removeHandler(printer)


class _Printer(logging.Handler):
    """Prints what the package logs as a line of the command's own."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sanet", description="SA-Net: train, evaluate, compare networks.")
    parser.add_argument("--version", action="version", version=f"sanet {version('shuffle-attention')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add_training(commands, Recipe, _train)
    held = "checkpoint of sanet train, a published one, or bare weights"
    add_evaluation(commands, Recipe, _evaluate, checkpoint=held, batch_size=128, fields=_EVALUATION_FIELDS)
    _add_profile(commands)
    _add_compare(commands)
    add_detect(commands)
    add_explain(commands)
    add_report(commands)
    add_demo(commands)
    return parser


def _add_profile(commands: Any) -> None:
    profile = commands.add_parser(
        "profile",
        help="measure what networks cost",
        description="Parameters, multiply-adds, time and memory of networks beside the first of them.",
        allow_abbrev=False,
    )
    profile.set_defaults(run=_profile)
    profile.add_argument("models", nargs="*", metavar="MODEL", help="models of timm or of this package")
    profile.add_argument("--paper", action="store_true", help="ResNet-50 and 101 with each attention, and as published")
    profile.add_argument("--img-size", type=int, default=224, metavar="N", help="side of the input, pixels (224)")
    profile.add_argument("--batch-size", type=int, default=8, metavar="N", help="images at a time (8)")
    profile.add_argument("--layout", choices=["nchw", "nhwc"], default="nchw", help="memory format (nchw)")
    profile.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps, ... (auto)")
    profile.add_argument("--threads", type=int, metavar="N", help="threads of the CPU; PyTorch's choice by default")
    profile.add_argument("--repetitions", type=int, default=9, metavar="N", help="how often each is timed (9)")
    profile.add_argument("--json", metavar="FILE", help="write the figures there")
    profile.add_argument("--picture", metavar="FILE", help="draw the ratios there, as PNG")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="train several networks alike and compare them",
        description="Train the same recipe with several networks and seeds. The same command goes on where it was "
        "stopped. Any field of the recipe but the model can be given here as well.",
        allow_abbrev=False,
    )
    compare.set_defaults(run=_compare)
    run = compare.add_argument_group("comparison")
    run.add_argument(
        "--attention", type=_names, default=[], metavar="A,B", help="attentions; the first is the baseline"
    )
    run.add_argument("--depth", type=int, metavar="N", help="layers of their ResNet (18)")
    run.add_argument("--models", type=_names, default=[], metavar="A,B", help="models, in place of attentions")
    run.add_argument("--from", dest="start", metavar="FILE", help="trained plain network to attach the attentions to")
    run.add_argument("--where", metavar="PLACE", help="residual, stage, last or a glob (residual)")
    run.add_argument("--preserve", choices=["both", "yes", "no"], help="attached with what it computed kept (both)")
    run.add_argument("--seeds", type=int, default=3, metavar="N", help="how many, from --seed on (3)")
    run.add_argument("--recipe", metavar="NAME", help=f"{', '.join(recipe_names())}, or a YAML file")
    run.add_argument("--output", metavar="DIR", required=True, help="folder of the comparison")
    run.add_argument("--report-only", action="store_true", help="report what the folder holds, and train nothing")
    add_fields(compare, Recipe)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


_EVALUATION_FIELDS = (
    "data data_dir val_split workers check_images skip_bad_images img_size mean std interpolation crop_pct "
    "model model_args in_chans small_stem device precision channels_last"
)


def _train(options: argparse.Namespace) -> int:
    from .classification import Classification
    from .launch import train_command

    return train_command(Classification, options.recipe, overrides(options), options.output, options.resume)


def _evaluate(options: argparse.Namespace) -> int:
    from .launch import evaluate_command

    return evaluate_command(
        options.checkpoint, overrides(options), options.batch_size, ema=options.ema, json_file=options.json
    )


def _profile(options: argparse.Namespace) -> int:
    from .launch_profile import profile_command

    return profile_command(
        options.models,
        paper=options.paper,
        img_size=options.img_size,
        batch_size=options.batch_size,
        layout=options.layout,
        device=options.device,
        threads=options.threads,
        repetitions=options.repetitions,
        json_file=options.json,
        picture=options.picture,
    )


def _compare(options: argparse.Namespace) -> int:
    from .launch_compare import compare_command

    return compare_command(
        options.recipe,
        overrides(options),
        options.output,
        attentions=options.attention,
        depth=options.depth,
        models=options.models,
        seeds=options.seeds,
        report_only=options.report_only,
        start=options.start,
        where=options.where,
        preserve=options.preserve,
    )
