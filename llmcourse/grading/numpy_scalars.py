"""NumPy's scalars, which look like numbers and are none: refused, with the way to a plain one."""

from __future__ import annotations

import numpy as np

PLAIN = {np.bool_: "bool", np.integer: "int", np.floating: "float", np.str_: "str"}


def remedy(kind: type) -> str:
    """`; float(…) makes a plain float` for `numpy.float64`; empty for a type that is not one of them."""
    plain = next((name for base, name in PLAIN.items() if issubclass(kind, base)), "")
    return f"; {plain}(…) makes a plain {plain}" if plain else ""
