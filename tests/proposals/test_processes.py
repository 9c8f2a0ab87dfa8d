"""Work spread over processes: results in order, errors raised, deaths noticed at any moment."""

import os
import signal
import time

import pytest

from proposals.dataset.processes import ProcessDiedError, map_apart


def square(number: int) -> int:
    return number * number


def refuse_three(number: int) -> int:
    if number == 3:
        raise ValueError("not three")
    return number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60 if number == 1 else 0)
    return number


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_results_are_in_order(workers):
    assert map_apart(square, range(7), workers) == [n * n for n in range(7)]
    assert map_apart(square, [], workers) == []


def test_what_the_function_raises_is_raised():
    with pytest.raises(ValueError, match="not three"):
        map_apart(refuse_three, range(5), 2)


@pytest.mark.parametrize("items", [[2, 1], [1, 2]])
def test_a_death_ends_the_others(items):
    started = time.monotonic()
    with pytest.raises(ProcessDiedError):
        map_apart(die_at_two, items, 2)
    assert time.monotonic() - started < 30
