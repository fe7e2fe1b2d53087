"""The one kind of error that a person can mend: what came in is not what can be used."""


class InputError(ValueError):
    """Input that cannot be used; the message says what was received and what would work.

    The command line prints the message of this error alone, without a traceback, and exits with 2.
    """
