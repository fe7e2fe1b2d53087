"""The command ``sanet``: one subcommand a job, each of which imports what it needs when it is asked for."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.metadata import version

from ..errors import BAD_INPUT, InputError
from .commands.classification_options import add_classification
from .commands.compare_options import add_compare
from .commands.demo_options import add_demo
from .commands.detect_options import add_detect
from .commands.explain_options import add_explain
from .commands.export import add_export
from .commands.profile_options import add_profile
from .commands.report_options import add_report

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 for input that cannot be used, 128 + n for signal n."""
    options = _parser().parse_args(arguments)
    logger = logging.getLogger("shuffle_attention")
    printer = _Printer()
    logger.addHandler(printer)
    try:
        return options.run(options)
    except (InputError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
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

    add_classification(commands)
    add_profile(commands)
    add_compare(commands)
    add_detect(commands)
    add_explain(commands)
    add_export(commands)
    add_report(commands)
    add_demo(commands)
    return parser
