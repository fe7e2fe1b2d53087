"""The command ``sanet``: runs the command that its first words name."""

import logging
import os
import sys
from collections.abc import Mapping, Sequence

import shuffle_attention

from ..errors import BAD_INPUT, InputError, require_extra, unknown
from .commands import Command
from .parser import collect, parse

INTERRUPTED, BROKEN_PIPE = 130, 141
_ABOUT = "SA-Net, shuffle attention for convolutional networks: train models, evaluate, compare and explain them."
_EXAMPLES = """examples:
  sanet train --recipe digits --output runs/digits
  sanet eval runs/digits/best.pt
  sanet compare --attention none,se,shuffle --recipe digits --output runs/compared"""
_HELP = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 for a failed check, 2 for invalid input, 128 + n for signal n."""
    logger, printer = logging.getLogger("shuffle_attention"), _Printer()
    logger.addHandler(printer)
    logger.setLevel(logging.INFO)
    try:
        code = _run([*(sys.argv[1:] if arguments is None else arguments)])
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # as in `| head`; Python would complain once more when it flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (InputError, OSError) as error:
        # Before the processes of torchrun have joined, all of one machine meet the same error.
        if getattr(error, "joined", False) or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        logger.removeHandler(printer)


class _Printer(logging.Handler):
    """Prints each message that the package logs on a line of standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        print(f"{level}{record.getMessage()}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    known = collect()
    if arguments == ["--version"]:
        print(f"sanet {shuffle_attention.__version__}")
        return 0
    words = next((words for words in (2, 1) if " ".join(arguments[:words]) in known), 0)
    if words:
        command = parse(known[" ".join(arguments[:words])], arguments[words:])
        require_extra(*command.modules, extra="sanet")
        return command.run()
    first = arguments[0] if arguments else ""
    group = {name: command for name, command in known.items() if name.split()[0] == first}
    asked = [word for word in (arguments[1:] if group else arguments) if word not in _HELP]
    if asked:
        names = group or dict.fromkeys(name.split()[0] for name in known)
        raise unknown("command", " ".join([*([first] if group else []), asked[0]]), names)
    print(_overview(group or known, f"sanet {first}" if group else "sanet"))
    return 0


def _overview(known: Mapping[str, type[Command]], prog: str) -> str:
    width = max(map(len, known))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in known.items()]
    about, examples = ([_ABOUT, ""], [_EXAMPLES, ""]) if prog == "sanet" else ([], [])
    end = f"{prog} COMMAND --help describes a command and its options."
    return "\n".join([f"usage: {prog} COMMAND [OPTIONS]", "", *about, "commands:", *lines, "", *examples, end])
