"""Errors that a person can mend: what came in is not what can be used."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

BAD_INPUT = 2  # exit code of the command line


class InputError(ValueError):
    """Input that cannot be used; the message says what was received and what would work.

    The command line prints the message of this error alone, without a traceback, and exits with BAD_INPUT.
    """


class DataError(InputError):
    """Images or labels that cannot be trained or evaluated on."""


@contextmanager
def asked_for(**received: Any) -> Iterator[None]:
    """Turns what a library says of an argument into an error that names the setting it came from."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise InputError(f"{settings} cannot be used: {str(error) or type(error).__name__}") from error


def require_extra(module: str, *, extra: str, note: str = "") -> ModuleType:
    """Import a module that an optional extra of this package brings.

    Raises:
        InputError: If it is not installed; the message names the extra.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        message = f"{package} is not installed: pip install 'shuffle-attention[{extra}]'{note}"
        raise InputError(message) from error


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names separated by commas, with the number of those left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
