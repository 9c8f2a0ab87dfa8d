"""Arrow columns straight from memory.

``pyarrow.array`` would do, but imports pandas first wherever pandas is installed: a third of a second and forty
megabytes of every worker.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

# Not DataType.to_pandas_dtype, which imports pandas in older pyarrow.
_DTYPES = {pa.int8(): np.int8, pa.int32(): np.int32, pa.int64(): np.int64, pa.float32(): np.float32}


def number_column(values: Any, kind: pa.DataType) -> pa.Array:
    """[n] numbers as an array of ``kind``, int8, int32, int64 or float32, without nulls.

    Raises OverflowError when an integer does not fit, as numpy itself does not.
    """
    given = np.asarray(values)
    numbers = np.ascontiguousarray(given, dtype=_DTYPES[kind])
    if pa.types.is_integer(kind) and not np.array_equal(given, numbers):
        raise OverflowError(f"a number does not fit into {kind}")
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def text_column(values: Sequence[str]) -> pa.Array:
    """[n] strings, without nulls. Raises OverflowError when they take 2 GiB together."""
    encoded = [value.encode() for value in values]
    ends = number_column(np.cumsum([0, *map(len, encoded)]), pa.int32())
    return pa.StringArray.from_buffers(len(values), ends.buffers()[1], pa.py_buffer(b"".join(encoded)))
