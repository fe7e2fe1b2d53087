"""Errors that a person can mend: what came in is not what can be used."""


class InputError(ValueError):
    """Input that cannot be used; the message says what was received and what would work.

    The command line prints the message of this error alone, without a traceback, and exits with 2.
    """


class DataError(InputError):
    """Images or labels that cannot be trained or evaluated on."""
