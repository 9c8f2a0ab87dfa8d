"""Files and commands that pages name in passing are there: in backticks, outside of the blocks that are run."""

import re

import pytest

from tests.docs.blocks import PAGES, ROOT
from tests.docs.test_benchmark_commands import Parsed, parse_options_of
from tests.docs.test_blocks import help_of

# What was true of a version stays said of it.
NOW = [page for page in PAGES if page != "CHANGELOG.md"]
FOLDERS = (
    "proposals",
    "pipeline",
    "aligndet_train",
    "tests",
    "benchmarks",
    "docs",
    "examples",
    "infra",
    "tools",
)
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]+\.\w+")


def spans(page: str) -> list[str]:
    """What stands in backticks, on one line."""
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands(start: str) -> list[tuple[str, str]]:
    """(page, command) of those that begin so and leave nothing out."""
    return [
        (page, span)
        for page in NOW
        for span in spans(page)
        if span.startswith(start) and not re.search(r"\.\.\.|[|\[]|\bN\b", span)
    ]


@pytest.mark.parametrize("page", NOW)
def test_files_that_a_page_names_are_there(page):
    for span in spans(page):
        for path in _PATH.findall(span):
            assert (ROOT / path).exists(), f"{page}: {path}"


def test_python_files_without_a_folder_are_somewhere():
    names = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")} | {"FILE.py"}
    for page in NOW:
        for span in spans(page):
            assert set(re.findall(r"(?<![\w./-])\w+\.py\b", span)) <= names, page


@pytest.mark.parametrize(("page", "command"), commands("aligndet "))
def test_verbs_and_options_are_there(page, command):
    words = command.split()
    if words[1] == "VERB":
        return
    text = help_of(words[1:3] if words[1] == "backbone" else words[1:2])
    assert [word for word in words if word.startswith("--") and word not in text] == [], page


@pytest.mark.parametrize(
    ("page", "command"), commands("python benchmarks/") + commands("python -m benchmarks.")
)
def test_benchmarks_have_the_options_that_a_page_gives(page, command, monkeypatch):
    with pytest.raises(Parsed):
        parse_options_of(command.split()[1:], monkeypatch)
