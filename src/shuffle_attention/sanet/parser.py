"""Build the options of a command from its fields, and parse them."""

import argparse
import difflib
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NoReturn, get_args, get_origin

from ..errors import BAD_INPUT
from . import commands
from .commands import Command, flag_of
from .recipes.recipe import recipe_names
from .recipes.settings import GROUPS, Option, parsed, without_none

_WIDTH = 78  # of the description in a command's help


def collect() -> dict[str, type[Command]]:
    """Return all commands by name, after importing the files of the folder ``commands``."""
    for file in pkgutil.iter_modules(commands.__path__, f"{commands.__name__}."):
        importlib.import_module(file.name)
    return dict(sorted(Command.known.items()))


def parse(command: type[Command], arguments: list[str]) -> Command:
    """Return a command with the options that were given.

    Raises:
        SystemExit: If help was asked for, or the options are not those of the command.
    """
    parser = Parser(command)
    parser.refuse_unknown(arguments)
    given = vars(parser.parse_intermixed_args(arguments))
    overrides = {name.removeprefix("recipe."): given.pop(name) for name in [*given] if name.startswith("recipe.")}
    return command(**given, overrides=overrides)


class _Help(argparse.Action):
    """Prints the common options of a command that takes all fields of a recipe, or those of a group, or all."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        Parser(parser.command, shown=values or "common").print_help()
        parser.exit()


class Parser(argparse.ArgumentParser):
    """Parses the options of a command: its fields, and those of its recipe that it takes.

    Args:
        command: The command.
        shown: Options that the help shows: ``all``, a group, or ``common`` for those of the command and the fields of
            its recipe that come first.
    """

    def __init__(self, command: type[Command], shown: str = "all") -> None:
        self.command, self.shown = command, shown
        self.has_groups = command.recipe_type is not None and command.recipe_fields is None
        usage = ["sanet", command.name]
        for name, (option, hint) in sorted(command.options().items(), key=lambda each: not each[1][0].positional):
            if option.default is ...:
                usage += (
                    [metavar_of(name, option, hint)]
                    if option.positional
                    else [flag_of(name), metavar_of(name, option, hint)]
                )
        everything = f"all options: sanet {command.name} --help all"
        more = f"more options: --help {' | '.join(GROUPS)} | all"
        examples = command.examples and f"examples:\n{textwrap.indent(command.examples, '  ')}"
        epilog = {"all": examples, "common": f"{examples}\n\n{more}"}.get(shown, everything)
        paragraphs = [textwrap.fill(part, _WIDTH) for part in (inspect.getdoc(command) or "").split("\n\n")]
        super().__init__(
            prog=f"sanet {command.name}",
            usage=f"{' '.join(usage)} [OPTIONS]",
            description="\n\n".join(paragraphs),
            epilog=epilog,
            allow_abbrev=False,
            add_help=not self.has_groups,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=30),
        )
        refused = command.recipe_type.refused if command.recipe_type else {}
        self.refused = {flag_of(name): reason for name, reason in refused.items()}
        self.groups: dict[str, Any] = {"options": self}
        if self.has_groups:
            text = "list common options, those of a group, or all"
            about: dict[str, Any] = {"default": argparse.SUPPRESS}
            about["help"] = text if shown in ("all", "common") else argparse.SUPPRESS
            self.add_argument(
                "-h", "--help", nargs="?", choices=(*GROUPS, "all"), metavar="GROUP", action=_Help, **about
            )
        for name, (option, hint) in command.options().items():
            self.add_option(name, option, hint, command)
        fields = [*command.recipe_type.options().items()] if command.recipe_type else []
        for name, (option, hint) in sorted(
            fields, key=lambda each: (GROUPS.index(each[1][0].group), not each[1][0].first)
        ):
            if command.recipe_fields is None or name in command.recipe_fields.split():
                self.add_option(name, option, hint, command, of_recipe=True)

    def add_option(
        self, name: str, option: Option, hint: Any, command: type[Command], *, of_recipe: bool = False
    ) -> None:
        """Add an option to its group; an option that is not given leaves no trace in the result."""
        text = option.help.replace(
            "{recipes}", ", ".join(recipe_names(command.recipe_type)) if command.recipe_type else ""
        )
        # Fields of a few, as those of eval, come from a checkpoint, and their defaults with them.
        named = of_recipe and name == "data" and command.recipe_type.needs_data
        if not named and (not of_recipe or command.recipe_fields is None):
            text += _default(option.default)
        settings: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
        common = not of_recipe or option.first
        if not (self.shown in ("all", option.group) or (self.shown == "common" and common)):
            settings["help"] = argparse.SUPPRESS
        kind = without_none(hint)
        if kind is bool:
            switched = of_recipe or option.default is not False
            settings["action"] = argparse.BooleanOptionalAction if switched else "store_true"
        else:
            is_list = get_origin(kind) is list
            item = get_args(kind)[0] if is_list else kind
            settings["metavar"] = metavar_of(name, option, hint)
            settings["type"] = _reader(item, option.separator, may_be_none=of_recipe and kind is not hint)
            if option.const is not None or (option.positional and option.default is None):
                settings |= {"nargs": "?", "const": option.const}
            elif is_list and option.separator is None:
                settings["nargs"] = "+" if option.nargs == "*" and option.default in (..., None) else option.nargs
        if option.group not in self.groups:
            self.groups[option.group] = self.add_argument_group(option.group)
        group = self.groups[option.group]
        if option.positional:
            group.add_argument(name, **settings)
            return
        settings |= {"dest": f"recipe.{name}" if of_recipe else name, "required": option.default is ...}
        group.add_argument(flag_of(name), **settings)
        if option.aliases:
            group.add_argument(*option.aliases, **settings | {"help": argparse.SUPPRESS})

    def refuse_unknown(self, arguments: list[str]) -> None:
        """Name the closest option for one that does not exist, before options are reported missing."""
        known = {flag: action.help or "" for action in self._actions for flag in action.option_strings}
        visible = {flag: text for flag, text in known.items() if text != argparse.SUPPRESS}
        for flag in (word.split("=")[0] for word in arguments[: [*arguments, "--"].index("--")]):
            if flag.startswith("--") and flag not in known:
                if reason := self.refused.get(flag):
                    self.error(f"{flag}: {reason}")
                words = flag.strip("-").replace("-", " ")
                by_help = [each for each in visible if " " in words and words in visible[each]]
                close = (by_help or difflib.get_close_matches(flag, visible))[:3]
                hint = f"did you mean {' or '.join(close)}? " if close else ""
                self.error(f"no option {flag}; {hint}{self.prog} --help{' all' * self.has_groups} lists all")

    def error(self, message: str) -> NoReturn:
        """Exit with the usage of the command and one line, as for other invalid input."""
        extra = message.removeprefix("unrecognized arguments: ")
        if extra != message and "--data" in self._option_string_actions:
            message += f"; did you mean --data {extra}?"
        self.print_usage(sys.stderr)
        self.exit(BAD_INPUT, f"error: {message}\n")


def _reader(item: Any, separator: str | None, *, may_be_none: bool) -> Callable[[str], Any]:
    """Return the function that reads one word of the command line."""

    def read(text: str) -> Any:
        if may_be_none and text.lower() == "none":
            return None
        if separator is not None:
            return [parsed(part.strip(), item) for part in text.split(separator) if part.strip()]
        return parsed(text, item)

    return read


def metavar_of(name: str, option: Option, hint: Any) -> str:
    """Return the word that stands for the value of an option in its help."""
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
