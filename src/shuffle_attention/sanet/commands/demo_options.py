"""The options of ``sanet demo``; what it does is imported when it runs."""

import argparse
from typing import Any


def add_demo(commands: Any) -> None:
    """Adds the subcommand."""
    command = commands.add_parser(
        "demo",
        help="look at networks on a web page",
        description="Start a web page on this machine: drop an image, and see what networks predict and attend to, and "
        "what detectors find. Without a checkpoint the network of runs/demo is shown, which `make demo` trains, and "
        "which is trained first where it is missing (handwritten digits, a minute or two).",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "--checkpoint", nargs="+", default=[], metavar="FILE", help="of sanet train, sanet detect train, or published"
    )
    command.add_argument("--host", default="127.0.0.1", metavar="NAME", help="address to listen on (127.0.0.1)")
    command.add_argument("--port", type=int, metavar="N", help="port; by default the first free one from 7860 on")
    command.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps, ... (auto)")
    command.add_argument("--no-browser", action="store_true", help="open no browser")


def _run(options: argparse.Namespace) -> int:
    from .demo import demo_command

    return demo_command(
        options.checkpoint,
        host=options.host,
        port=options.port,
        device=options.device,
        browser=not options.no_browser,
    )
