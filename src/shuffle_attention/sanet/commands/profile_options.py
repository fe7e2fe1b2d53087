"""The command ``sanet profile``; what it does is imported when it runs."""

import argparse
from typing import Any


def add_profile(commands: Any) -> None:
    """Adds the command."""
    profile = commands.add_parser(
        "profile",
        help="measure what networks cost",
        description="Parameters, multiply-adds, time and memory of networks beside the first of them.",
        allow_abbrev=False,
    )
    profile.set_defaults(run=_run)
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


def _run(options: argparse.Namespace) -> int:
    from .profile import profile_command

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
