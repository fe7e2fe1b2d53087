"""The options of ``sanet explain``; what it does is imported when it runs."""

import argparse
from typing import Any

from ...explain.maps import METHODS
from ..recipes.arguments import separated


def add_explain(commands: Any) -> None:
    """Adds the subcommand."""
    command = commands.add_parser(
        "explain",
        help="show what networks attend to",
        description="Draw where in images the evidence for a class is, for one network or several side by side; the "
        "gates of shuffle attention; or figures that say how true the maps are.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="files, and folders with all that is inside them")
    command.add_argument("--skip-bad-images", action="store_true", help="leave out what cannot be read")
    networks = command.add_argument_group("networks")
    files = networks.add_mutually_exclusive_group()
    files.add_argument("--checkpoint", metavar="FILE", help="of sanet train, a published one, or bare weights")
    files.add_argument("--compare", nargs="+", metavar="FILE", help="several checkpoints or models, side by side")
    networks.add_argument(
        "--model", metavar="NAME", help="a model of timm; with --checkpoint, the one whose bare weights the file has"
    )
    networks.add_argument("--pretrained", action="store_true", help="fetch timm's weights of models that are named")
    networks.add_argument("--ema", action=argparse.BooleanOptionalAction, help="averaged weights; where there are some")
    networks.add_argument("--labels", type=separated, default=[], metavar="A,B", help="what to call the networks")
    networks.add_argument("--img-size", type=int, metavar="N", help="side of the input; as trained by default")
    networks.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps, ... (auto)")
    what = command.add_argument_group("what to show")
    what.add_argument("--method", choices=METHODS, default="gradcam", help="kind of map (gradcam)")
    what.add_argument("--target", metavar="CLASS", help="name or number of a class; the predicted one by default")
    what.add_argument("--layer", metavar="NAME", help="a module, or stage1, stage2, ...; the last stage by default")
    what.add_argument("--limit", type=int, metavar="N", help="so many images, at even distances")
    what.add_argument("--batch-size", type=int, default=16, metavar="N", help="images at a time (16)")
    what.add_argument("--output", default="explained", metavar="DIR", help="folder to write to (explained)")
    job = command.add_argument_group("in place of maps").add_mutually_exclusive_group()
    job.add_argument("--gates", action="store_true", help="the gates, groups and shuffles of shuffle attention")
    job.add_argument("--scores", action="store_true", help="deletion, insertion, drop and increase, as a table")
    rest = command.add_argument_group("with --gates or --scores")
    rest.add_argument("--channels", type=_numbers, default=[], metavar="N,M", help="channels of --layer, with --gates")
    rest.add_argument("--boxes", metavar="FILE", help="COCO annotations of the images, for the pointing game")
    rest.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="pixels that it may miss by (0)")
    rest.add_argument("--steps", type=int, default=32, metavar="N", help="steps of deletion and insertion (32)")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in separated(text)]


def _run(options: argparse.Namespace) -> int:
    from .explain import explain_command

    given = vars(options)
    return explain_command(**{name: value for name, value in given.items() if name != "run"})
