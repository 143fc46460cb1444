"""Commands of `claimlab` that are found by file: each module of this package has a function `register(add)`.

`add(name, act, text, reads=False)` makes the parser of one command and returns it; `act(options)` runs it and returns the exit
code. A module imports nothing but the standard library and declarations at its head: `claimlab list` reads them all.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from typing import Any


def register(add: Callable[..., Any]) -> None:
    """Let every module of this package add its commands, in the order of their file names."""
    for one in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        import_module(f"{__name__}.{one.name}").register(add)
