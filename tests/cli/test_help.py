"""The help of every verb: as it was looked at and committed, with an example that the parser accepts."""

import re
import shlex

import pytest
import typer

from proposals.cli import build_app
from tests.cli.verbs import help_of, snapshot, verbs

GROUPS = {"", "backbone"}


@pytest.mark.parametrize("verb", verbs())
def test_it_reads_as_committed(verb):
    assert help_of(verb) == snapshot(verb).read_text(), "if it is meant: python -m tests.cli.verbs"


@pytest.mark.parametrize("verb", sorted(set(verbs()) - GROUPS))
def test_it_has_an_example_of_this_verb_with_options_that_exist(verb):
    command = typer.main.get_command(build_app())
    for name in verb.split():
        command = command.commands[name]
    example = re.search(rf"Example: .*?`[^`]*aligndet {verb}( [^`]*)?`", " ".join(command.help.split()))
    assert example, command.help
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in shlex.split(example[1] or "") if word.startswith("-")} <= options


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell_is_printed(shell, aligndet, monkeypatch):
    monkeypatch.setenv("_ALIGNDET_COMPLETE", f"source_{shell}")
    done = aligndet()
    assert f"complete_{shell}" in done.stdout
    assert "aligndet" in done.stdout


def test_verbs_are_completed(aligndet, monkeypatch):
    monkeypatch.setenv("_ALIGNDET_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "aligndet pretr")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = aligndet()
    assert done.stdout.split() == ["pretrain", "pretrain-backbone"]


def test_no_snapshot_is_of_a_verb_that_is_gone():
    folder = snapshot("").parent
    assert {file.name for file in folder.glob("*.txt")} == {snapshot(verb).name for verb in verbs()}
