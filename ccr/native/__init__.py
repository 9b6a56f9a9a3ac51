"""The core's arithmetic, compiled: ``swift.c``, built where a C compiler was at hand when the package was installed.

The Python it follows is the definition, and what runs where nothing was built: the same numbers, ten times slower.
``CCR_NATIVE=0`` turns it off.
"""

import os
from typing import Final

try:
    from ccr.native import swift
except ImportError:
    _IS_BUILT = False
else:
    _IS_BUILT = True

IS_NATIVE: Final = _IS_BUILT and os.environ.get("CCR_NATIVE", "1") != "0"
"""Whether compiled arithmetic is used in this process."""

__all__ = ["IS_NATIVE", "swift"]
