"""Backends of the ops. A backend is a module or package of this folder with two functions.

``register(library)`` registers the backend's kernels of the ops in :mod:`..schema`, where it has any for this
installation; ``supports(x, whole)`` returns whether a kernel of it serves the device and type of a map ``x``, and if
not ``whole``, whether it does so for a block tail without BatchNorm or without attention.
"""

import importlib
import pkgutil

BACKENDS = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
