"""The command ``sanet``: collects the commands, builds their options from their fields, and runs one of them."""

import argparse
import difflib
import importlib
import inspect
import logging
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, get_args, get_origin

import shuffle_attention

from ..errors import BAD_INPUT, InputError, require_extra, unknown
from . import commands
from .commands import Command, flag_of
from .recipes.recipe import recipe_names
from .recipes.settings import GROUPS, Option, parsed, without_none

INTERRUPTED = 130
_ABOUT = "SA-Net, shuffle attention for convolutional networks: train models, evaluate, compare and explain them."
_EXAMPLES = """examples:
  sanet train --recipe digits --output runs/digits
  sanet eval runs/digits/best.pt
  sanet compare --attention none,se,shuffle --recipe digits --output runs/compared"""
_HELP = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for invalid input, 128 + n for signal n."""
    logger, printer = logging.getLogger("shuffle_attention"), _Printer()
    logger.addHandler(printer)
    try:
        return _run([*(sys.argv[1:] if arguments is None else arguments)])
    except (InputError, OSError) as error:
        print(f"error: {str(error) or type(error).__name__}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        logger.removeHandler(printer)


def collect() -> dict[str, type[Command]]:
    """Return all commands by name, after importing the files of the folder ``commands``."""
    for file in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(file.name)
    return dict(sorted(Command.known.items()))


class _Printer(logging.Handler):
    """Prints each message that the package logs on a line of standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    known = collect()
    if arguments == ["--version"]:
        print(f"sanet {shuffle_attention.__version__}")
        return 0
    words = next((words for words in (2, 1) if " ".join(arguments[:words]) in known), 0)
    if words:
        command = parse(known[" ".join(arguments[:words])], arguments[words:])
        require_extra("rich", "matplotlib", "jinja2", "sklearn", "scipy", extra="sanet")
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


class _Parser(argparse.ArgumentParser):
    """Ends with the usage of the command and one line, as other invalid input does."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(BAD_INPUT, f"error: {message}\n")


def parse(command: type[Command], arguments: list[str]) -> Command:
    """Return a command with the options that were given.

    Raises:
        SystemExit: If help was asked for, or the options are not those of the command.
    """
    options = command.options()
    usage = [command.name]
    usage += [_metavar(name, *each) for name, each in options.items() if each[0].positional and each[0].default is ...]
    usage += [
        f"{command.label(name)} {_metavar(name, *each)}"
        for name, each in options.items()
        if each[0].default is ... and not each[0].positional
    ]
    parser = _Parser(
        prog=f"sanet {command.name}",
        usage=f"sanet {' '.join(usage)} [OPTIONS]",
        description=inspect.getdoc(command),
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    groups: dict[str, Any] = {"options": parser}
    for name, (option, hint) in options.items():
        _add(parser, groups, name, option, hint, command)
    recipe = command.recipe_type
    if recipe is not None:
        only = None if command.recipe_fields is None else command.recipe_fields.split()
        fields = [(name, *each) for name, each in recipe.options().items() if only is None or name in only]
        for name, option, hint in sorted(fields, key=lambda each: (GROUPS.index(each[1].group), not each[1].first)):
            _add(parser, groups, name, option, hint, command, of_recipe=True)
    _refuse_unknown(parser, arguments)
    given = vars(parser.parse_args(arguments))
    overrides = {name.removeprefix("recipe."): given.pop(name) for name in [*given] if name.startswith("recipe.")}
    return command(**given, overrides=overrides)


def _add(
    parser: argparse.ArgumentParser,
    groups: dict[str, Any],
    name: str,
    option: Option,
    hint: Any,
    command: type[Command],
    *,
    of_recipe: bool = False,
) -> None:
    """Add one option to the parser, in its group; what is not given leaves no trace."""
    if option.group not in groups:
        groups[option.group] = parser.add_argument_group(option.group)
    group, kind = groups[option.group], without_none(hint)
    shown = option.help.replace(
        "{recipes}", ", ".join(recipe_names(command.recipe_type)) if command.recipe_type else ""
    )
    # The fields of eval's and others' recipes come from a checkpoint, and their defaults with them.
    if not of_recipe or command.recipe_fields is None:
        shown += _default(option.default)
    settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": shown.replace("%", "%%")}
    if kind is bool:
        switched = of_recipe or option.default is not False
        settings["action"] = argparse.BooleanOptionalAction if switched else "store_true"
    else:
        is_list = get_origin(kind) is list
        item = get_args(kind)[0] if is_list else kind
        settings["metavar"] = _metavar(name, option, hint)
        settings["type"] = _reader(item, option.separator, may_be_none=of_recipe and kind is not hint)
        if option.const is not None:
            settings |= {"nargs": "?", "const": option.const}
        elif is_list and option.separator is None:
            settings["nargs"] = "+" if option.nargs == "*" and option.default in (..., None) else option.nargs
    if option.positional:
        group.add_argument(name, **settings)
        return
    settings["dest"] = f"recipe.{name}" if of_recipe else name
    if option.default is ...:
        settings["required"] = True
    group.add_argument(flag_of(name), **settings)
    if option.aliases:
        group.add_argument(*option.aliases, **settings | {"help": argparse.SUPPRESS})


def _reader(item: Any, separator: str | None, *, may_be_none: bool):
    """Return the function that reads one word of the command line."""

    def read(text: str) -> Any:
        if may_be_none and text.lower() == "none":
            return None
        if separator is not None:
            return [parsed(part.strip(), item) for part in text.split(separator) if part.strip()]
        return parsed(text, item)

    return read


def _metavar(name: str, option: Option, hint: Any) -> str:
    if option.metavar is not None:
        return option.metavar
    kind = without_none(hint)
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if option.positional:
        return name.upper()
    return {int: "N", float: "X", str: "NAME"}.get(kind, "VALUE")


def _default(value: Any) -> str:
    """Return the default of an option for its help, if it says anything."""
    if value is ... or value is None or value is False or value in ("", [], {}):
        return ""
    if value is True:
        return " (on)"
    values = value if isinstance(value, list) else [value]
    return f" ({' '.join(f'{each:.4g}' if isinstance(each, float) else str(each) for each in values)})"


def _refuse_unknown(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Name the closest option for one that does not exist, before others are found missing."""
    known = {flag: action for action in parser._actions for flag in action.option_strings}
    flags = [word.split("=")[0] for word in arguments[: [*arguments, "--"].index("--")] if word.startswith("--")]
    visible = {flag: action.help or "" for flag, action in known.items() if action.help != argparse.SUPPRESS}
    for flag in flags:
        if flag not in known:
            words = flag.strip("-").replace("-", " ")
            by_help = [each for each in visible if " " in words and words in visible[each]]
            close = (by_help or difflib.get_close_matches(flag, visible))[:3]
            hint = f"; did you mean {' or '.join(close)}?" if close else ";"
            parser.error(f"no option {flag}{hint} {parser.prog} --help lists all")
