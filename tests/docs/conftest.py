"""Says at the end of a run how many blocks of the documentation ran, and which never run and why."""

import pytest

from tests.docs.blocks import all_blocks, totals

RAN: list[str] = []


@pytest.fixture
def ran() -> list[str]:
    """Names of the blocks that ran, for the summary."""
    return RAN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RAN:
        terminalreporter.section("documentation")
        found = all_blocks()
        terminalreporter.write_line(f"{len(RAN)} shell and Python blocks ran now. {totals(found)}:")
        for block in found:
            if block.reason:
                terminalreporter.write_line(f"  {block.page}:{block.line}: {block.reason}")
