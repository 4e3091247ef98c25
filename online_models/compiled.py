"""Plain loops, compiled where they are hot.

With NUMBA_DISABLE_JIT=1 in the environment the same functions run as they are written: slowly, with the same results.
"""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar, cast

import numba
from numba.core import caching

P = ParamSpec("P")
R = TypeVar("R")
SETTINGS: Any = numba.config


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function over arrays and numbers at its first call, and keep the machine code for the next process.

    Strict floating point, so that every machine and both ways of running give the same bits. The code is kept in
    NUMBA_CACHE_DIR if that is set, else beside its source, else in the user's cache; a directory that cannot be written
    is still read. Where there is none, each process compiles anew (some seconds).
    """
    dispatcher: Any = numba.njit(error_model="numpy")(function)
    if not SETTINGS.DISABLE_JIT:
        with suppress(RuntimeError):  # no place for the machine code
            dispatcher._cache = _MachineCode(function)  # type: ignore[no-untyped-call]
    return cast(Callable[P, R], dispatcher)


@lru_cache
def _stamp(directory: Path) -> str:
    """Of all sources beside a function, and of these: numba's own stamp says nothing of the functions it calls."""
    digest = hashlib.sha256()
    for path in sorted({*directory.glob("*.py"), *Path(__file__).parent.glob("*.py")}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _OfSources:
    """A place of numba's for machine code, which may be read-only, and is out of date when any source beside is."""

    _py_file: str

    def get_source_stamp(self) -> str:
        return _stamp(Path(self._py_file).parent)

    @classmethod
    def from_function(cls, function: Any, source: str) -> Self | None:
        place: Any = super().from_function(function, source)  # type: ignore[misc]  # None where it cannot write
        if place is None and (cls is not _Chosen or SETTINGS.CACHE_DIR):
            place = cls(function, source)  # type: ignore[call-arg]
            return place if any(Path(place.get_cache_path()).glob("*.nbi")) else None
        return cast(Self | None, place)


class _Chosen(_OfSources, caching.UserProvidedCacheLocator):
    """NUMBA_CACHE_DIR."""


class _Beside(_OfSources, caching.InTreeCacheLocator):
    """`__pycache__` beside the source."""


class _OfUser(_OfSources, caching.UserWideCacheLocator):
    """The user's cache directory."""


class _Places(caching.CompileResultCacheImpl):
    _locator_classes = [_Chosen, _Beside, _OfUser]  # noqa: RUF012  as numba declares it


class _MachineCode(caching.FunctionCache):
    """Machine code on disk; what cannot be written is compiled by each process."""

    _impl_class = _Places

    def save_overload(self, signature: Any, result: Any) -> None:
        with suppress(OSError):
            super().save_overload(signature, result)  # type: ignore[no-untyped-call]
