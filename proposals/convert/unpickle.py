"""Numpy arrays out of a pickle, and nothing else that a pickle can ask for: no code, no memory of its choice."""

import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from proposals.errors import AlignDetError

_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")
_NUMPY = tuple(f"numpy.{core}" for core in ("core", "_core"))  # NumPy 2 moved it


def load_arrays(path: Path) -> Any:
    """What the pickle in ``path`` holds, of plain containers and numpy arrays.

    A file that asks for any other class or function, or declares more than it has, is refused with AlignDetError.
    """
    try:
        with path.open("rb") as stream:
            _require_modest(stream)
            stream.seek(0)
            return _ArraysOnly(stream).load()
    except Exception as error:  # a file that is no pickle fails in whatever way its bytes happen to lead to
        raise AlignDetError(
            f"{path} is no readable proposal pickle: {error or type(error).__name__}."
        ) from error


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are allowed")
        return found


class _Whole:
    """A file that refuses to read beyond its end, before memory is taken for it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.size = stream, os.fstat(stream.fileno()).st_size
        self.readline, self.tell = stream.readline, stream.tell

    def read(self, size: int) -> bytes:
        if size > self.size - self._stream.tell():
            raise pickle.UnpicklingError("it ends too early")
        return self._stream.read(size)


def _require_modest(stream: BinaryIO) -> None:
    """Raise when an instruction declares more than the file holds: Python's unpickler would make room for it."""
    file = _Whole(stream)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        limit = count if opcode.name in _MEMO else file.size if opcode.name == "FRAME" else None
        if limit is not None and int(argument or 0) > limit:
            raise pickle.UnpicklingError(f"it declares {argument} where {limit} is the most")


def _no_array(*arguments: Any) -> Any:
    raise pickle.UnpicklingError("it makes an array of a size of its own")


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    # As numpy writes it: empty, to be filled by the state that follows, which must fit.
    return np.empty(0, "b") if (kind, shape) == (_no_array, (0,)) else _no_array()


def _empty(kind: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: kind()


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "dict"): _empty(dict),
    ("builtins", "list"): _empty(list),
    ("numpy", "ndarray"): _no_array,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: str(text).encode(encoding),
    **{(f"{core}.multiarray", "_reconstruct"): _reconstruct for core in _NUMPY},
    **{(f"{core}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for core in _NUMPY},
    **{(f"{core}.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0] for core in _NUMPY},
}
