"""Errors that a person can mend: what came in is not what can be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InputError(ValueError):
    """Input that cannot be used; the message says what was received and what would work.

    The command line prints the message of this error alone, without a traceback, and exits with 2.
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
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise InputError(f"{settings} cannot be used: {error}") from error
