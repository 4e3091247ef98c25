"""Plain loops, compiled where they are hot.

With NUMBA_DISABLE_JIT=1 in the environment the same functions run as they are written: slowly, with the same results.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function over arrays and numbers at its first call, and keep the machine code beside its source.

    Strict floating point, so that every machine and both ways of running give the same bits. Where neither the
    source's directory nor the user's cache can be written, each process compiles anew (some seconds).
    """
    try:
        return cast(Callable[P, R], numba.njit(cache=True, error_model="numpy")(function))
    except RuntimeError:  # no place for the cache
        return cast(Callable[P, R], numba.njit(error_model="numpy")(function))
