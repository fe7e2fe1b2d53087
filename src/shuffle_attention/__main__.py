"""``python -m shuffle_attention``: the command ``sanet``, in the form that torchrun starts."""

import sys

from .sanet.cli import main

if __name__ == "__main__":
    sys.exit(main())
