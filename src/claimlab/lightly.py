"""nbformat without the seconds that jsonschema spends on a grammar of internet addresses, which no notebook asks for.

jsonschema does without that library where it is not installed. Here it is out of sight while jsonschema is loaded.
"""

from __future__ import annotations

import sys

GRAMMAR = "rfc3987_syntax"

if "jsonschema" not in sys.modules and GRAMMAR not in sys.modules:
    sys.modules[GRAMMAR] = None  # type: ignore[assignment]  # to import it is an ImportError now
    try:
        import jsonschema  # noqa: F401
    finally:
        del sys.modules[GRAMMAR]

import nbformat  # noqa: E402

__all__ = ["nbformat"]
