"""Which machines are bad: the judgement after every attempt, against one that is written down anew."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.machines import Machines

_NAMES = ("a", "b", "c")
_attempts = st.lists(st.tuples(st.sampled_from(_NAMES), st.sampled_from(["well", "badly", "badly", "badly"])))


def _bad(history, living):
    """Eight failures or more since it last did well, while one that is there has no failure since."""
    since = {}
    for machine, how in history:
        since[machine] = 0 if how == "well" else since.get(machine, 0) + 1
    there = {machine: since[machine] for machine in living if machine in since}
    return {name for name, count in there.items() if count >= 8 and 0 in there.values()}


@given(_attempts, st.integers(0, 30), st.sampled_from([("a", "b"), ("b",), _NAMES]))
def test_who_is_bad_is_known_after_every_attempt(attempts, change, later):
    living, seen, told = [frozenset(_NAMES)], [], set()
    machines = Machines(lambda: living[0])
    for place, (machine, how) in enumerate([("a", "badly")] * 7 + attempts):
        if place == change:
            living[0] = frozenset(later)
        seen.append((machine, how))
        bad = _bad(seen, living[0])
        if how == "well":
            machines.passed(machine)
            told.discard(machine)
        else:
            assert machines.failed(machine) == (machine in bad - told)
            told |= {machine} & bad
        assert machines.bad == bad
        assert machines.all_known == (set(living[0]) <= {name for name, _ in seen})


@pytest.mark.parametrize(("failures", "bad"), [(7, set()), (8, {"a"})])
def test_eight_failures_in_a_row_make_a_machine_bad(failures, bad):
    machines = Machines(lambda living=frozenset("ab"): living)
    machines.passed("b")
    news = [machines.failed("a") for _ in range(failures)]
    assert (machines.bad, sum(news)) == (bad, len(bad))


def test_who_is_left_alone_is_bad_no_more_until_another_one_is_back():
    living = [frozenset("ab")]
    machines = Machines(lambda: living[0])
    machines.passed("b")
    for _ in range(8):
        machines.failed("a")
    for there, bad in (("ab", {"a"}), ("a", set()), ("ab", {"a"}), ("b", set())):
        living[0] = frozenset(there)
        assert machines.bad == bad


def test_a_machine_that_was_well_again_is_news_when_it_is_bad_again():
    machines = Machines(lambda living=frozenset("ab"): living)
    machines.passed("b")
    for _ in range(3):
        assert [machines.failed("a") for _ in range(10)] == [False] * 7 + [True, False, False]
        machines.passed("a")
