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
    """[n] numbers as an array of ``kind``, int8, int32, int64 or float32, without nulls."""
    numbers = np.ascontiguousarray(values, dtype=_DTYPES[kind])
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def text_column(values: Sequence[str]) -> pa.Array:
    """[n] strings, without nulls; together less than 2 GiB."""
    encoded = [value.encode() for value in values]
    ends = number_column(np.cumsum([0, *map(len, encoded)]), pa.int32())
    return pa.StringArray.from_buffers(len(values), ends.buffers()[1], pa.py_buffer(b"".join(encoded)))
