"""How this package compiles: two decorators, both without the GIL, without fastmath, with C's division.

`kernel` takes an explicit signature, so it compiles (or loads from the cache) once, while its module is imported,
and never for a second type. `helper` has none: it is compiled into the kernels that call it and is never loaded by
itself, which keeps the first call of a process short. Neither lets LLVM fuse a multiply with an add: OpenCV's
own loops are built without it and one fused rounding changes boxes.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
import numpy as np

from proposals.selective_search import cache

Index: TypeAlias = int | np.integer[Any]
_SETTINGS: Any = numba.config  # numba fills it at run time, out of the type checker's sight
_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(signature: str) -> Callable[[_Function], _Function]:
    """Compile for exactly ``signature``, caching on disk where `cache.directory` allows it."""

    def decorate(function: _Function) -> _Function:
        directory = cache.directory()
        before = _SETTINGS.CACHE_DIR
        _SETTINGS.CACHE_DIR = str(directory or before)
        try:
            compiled = numba.njit(
                signature, nogil=True, cache=directory is not None, error_model="numpy", boundscheck=False
            )(function)
        finally:
            _SETTINGS.CACHE_DIR = before
        return cast(_Function, compiled)

    return decorate


def helper(function: _Function) -> _Function:
    """Compile as part of the kernels that call it."""
    return cast(_Function, numba.njit(nogil=True, error_model="numpy", boundscheck=False)(function))
