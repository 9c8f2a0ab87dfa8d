"""Blocks of the documentation that ran say so: tests/conftest.py counts them at the end of the run."""

from collections.abc import Callable

import pytest

from tests.docs.blocks import RAN


@pytest.fixture
def ran(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``ran(name)``: that block ran. It travels with the test's report, from another process, too."""
    return lambda name: request.node.user_properties.append((RAN, name))
