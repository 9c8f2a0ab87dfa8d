"""Columns made of memory equal those that pyarrow makes of Python values."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proposals.dataset.columns import number_column, text_column


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_text(values):
    column = text_column(values)
    column.validate(full=True)
    assert column.equals(pa.array(values, pa.string()))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.int64(), pa.float32()], ids=str)
@given(values=st.lists(st.integers(-128, 127)))
def test_numbers(kind, values):
    column = number_column(values, kind)
    column.validate(full=True)
    assert column.equals(pa.array(values, kind))


def test_numbers_of_a_slice():
    values = np.arange(20, dtype=np.float32)[::3]
    assert number_column(values, pa.float32()).to_pylist() == values.tolist()


@pytest.mark.parametrize("values", [[2**31], np.array([0, 2**31])], ids=["list", "array"])
def test_a_number_that_does_not_fit_is_an_error(values):
    with pytest.raises(OverflowError):
        number_column(values, pa.int32())
