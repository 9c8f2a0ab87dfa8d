"""Every `python benchmarks/...` command of the pages has the options that its script has."""

import argparse
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


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_page_gives_benchmarks_options_that_they_have(words, monkeypatch):
    with pytest.raises(Parsed):
        parse_options_of(words, monkeypatch)


def test_there_are_such_commands():
    assert len(commands()) > 10
