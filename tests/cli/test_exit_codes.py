"""The table of exit codes in the documentation is the table in the code, and every error class is in it."""

import re
from pathlib import Path

from proposals import errors

PAGE = Path(__file__).parents[2] / "docs" / "exit-codes.md"


def _families(kind: type) -> set[type]:
    return {kind}.union(*(_families(child) for child in kind.__subclasses__()))


def test_the_page_is_the_table_in_the_code():
    rows = re.findall(r"^\| (\d+) \| (.*) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == errors.EXIT_CODES


def test_every_error_ends_with_a_code_of_the_table():
    assert {kind.exit_code for kind in _families(errors.AlignDetError)} <= errors.EXIT_CODES.keys()
