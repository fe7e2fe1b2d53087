"""The command ``sanet completion``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from ..recipes.settings import option
from . import Command

if TYPE_CHECKING:
    from argparse import ArgumentParser


@dataclass(kw_only=True)
class Completion(Command):
    """Print a script with which a shell completes commands, options, choices and file names.

    For bash, add this line to ~/.bashrc: eval "$(sanet completion bash)". For zsh, add eval "$(sanet completion zsh)"
    to ~/.zshrc, after compinit. For fish, run: sanet completion fish > ~/.config/fish/completions/sanet.fish
    """

    name = "completion"
    summary = "print the completion script of a shell"
    examples = 'eval "$(sanet completion bash)"'
    modules = ("shtab",)

    shell: Literal["bash", "zsh", "fish"] = option(..., "shell to print the script for", positional=True)

    def run(self) -> int:
        """Print the script."""
        import argparse
        import re

        import shtab

        from ..parser import Parser, collect

        commands, factory = collect(), cast(Any, _parser)
        root = argparse.ArgumentParser("sanet", allow_abbrev=False)
        words = {"": root.add_subparsers(parser_class=factory)}
        for name in sorted({*commands, *(name.split()[0] for name in commands)}):
            command, (before, _, last) = commands.get(name), name.rpartition(" ")
            parser = argparse.ArgumentParser(f"sanet {name}") if command is None else Parser(command)
            for action in parser._actions:
                choices = re.fullmatch(r"\{(.*)\}", str(action.metavar))
                if choices:
                    action.choices = choices[1].split(",")
                elif action.nargs != 0:
                    vars(action)["complete"] = shtab.DIR if action.metavar == "DIR" else shtab.FILE
            parser.description = (command.summary if command else f"commands of {name}").replace("%", "%%")
            words[before].add_parser(last, help=parser.description, parser=parser)
            if any(other.startswith(f"{name} ") for other in commands):
                words[name] = parser.add_subparsers(parser_class=factory)
        print(shtab.complete(root, self.shell))
        return 0


def _parser(*, parser: ArgumentParser, **_: Any) -> ArgumentParser:
    """Return the parser of a command, where argparse would create one."""
    return parser
