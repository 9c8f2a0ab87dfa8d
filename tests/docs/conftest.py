"""Says at the end of a run how many blocks of the documentation ran, and which never run and why."""

from collections.abc import Callable

import pytest

from tests.docs.blocks import all_blocks, totals

_BLOCK = "block of the documentation"


@pytest.fixture
def ran(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``ran(name)``: that block ran. It travels with the test's report, from another process, too."""
    return lambda name: request.node.user_properties.append((_BLOCK, name))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for found in terminalreporter.stats.values() for report in found]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    count = sum(name == _BLOCK for report in calls for name, _ in report.user_properties)
    if count:
        terminalreporter.section("documentation")
        found = all_blocks()
        terminalreporter.write_line(f"{count} shell and Python blocks ran now. {totals(found)}:")
        for block in found:
            if block.reason:
                terminalreporter.write_line(f"  {block.page}:{block.line}: {block.reason}")
