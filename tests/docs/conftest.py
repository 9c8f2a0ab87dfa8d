"""Says at the end of a run which blocks of the documentation ran."""

import pytest

from tests.docs.blocks import all_blocks, totals

RAN: list[str] = []


@pytest.fixture
def ran() -> list[str]:
    """Names of the blocks that ran, for the summary."""
    return RAN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RAN:
        terminalreporter.write_line(
            f"documentation: {len(RAN)} shell and Python blocks ran in this run. {totals(all_blocks())} "
            "(`python -m tests.docs` lists them)"
        )
