"""Every `python benchmarks/...` command of pages, and of the scripts themselves, has options that its script has."""

import argparse
import ast
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, all_blocks


class Parsed(BaseException):
    """The script got as far as its options; it goes no further."""


def commands() -> list[list[str]]:
    """The words after `python`, of every such line of every shell block, each once."""
    lines = {
        line.strip()
        for block in all_blocks()
        if block.language == "bash"
        for line in block.code.replace("\\\n", " ").splitlines()
    }
    words = (shlex.split(line, comments=True) for line in sorted(lines) if "benchmarks" in line)
    return [found[found.index("python") + 1 :] for found in words if "python" in found]


def own_commands() -> list[list[str]]:
    """The same of the scripts' docstrings, but for those that leave something out."""
    lines = [
        line.strip()
        for script in sorted((ROOT / "benchmarks").glob("*.py"))
        for line in (ast.get_docstring(ast.parse(script.read_text())) or "").replace("\\\n", " ").splitlines()
    ]
    whole = (line.split(": ")[0] for line in lines if not re.search(r"\.\.\.|\[", line))
    found = (re.match(r"(?:OMP_NUM_THREADS=1 )?python (-m )?benchmarks[/.].*", line) for line in whole)
    words = (shlex.split(line[0], comments=True) for line in found if line)
    return [command[command.index("python") + 1 :] for command in words]


def script_of(words: list[str]) -> tuple[Path, list[str]]:
    """The script's file and its arguments; `-m benchmarks.step` names one, too."""
    if words[0] == "-m":
        return ROOT / f"{words[1].replace('.', '/')}.py", words[2:]
    return ROOT / words[0], words[1:]


def parse_options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``words``, what follows `python`, as far as its options. Raises Parsed when they are right."""
    script, arguments = script_of(words)
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*given, **named):
        parse(*given, **named)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("words", commands() + own_commands(), ids=" ".join)
def test_a_page_gives_benchmarks_options_that_they_have(words, monkeypatch):
    with pytest.raises(Parsed):
        parse_options_of(words, monkeypatch)


def test_there_are_such_commands():
    assert len(commands()) > 10
    assert len(own_commands()) > 10
