"""What README and docs show is run: every page's shell and Python blocks, in order, in one folder, as they stand there.

Commands are run as written, but `aligndet` is the one of tests/docs/tiny.py, whose docstring lists the sizes it
changes; the folder is that of tests/docs/workshop.py. A block that is not run says why in its fence.
Pages whose commands use torch or Ray are slow tests, but for one.
"""

import shlex

import pytest
from typer.testing import CliRunner

from proposals.cli import build_app
from tests.docs.blocks import FORBIDDEN, PAGES, all_blocks, blocks_of, fences, is_slow
from tests.docs.tiny import small
from tests.docs.workshop import Workshop


def pages_with_blocks() -> list:
    return [
        pytest.param(page, id=page, marks=[pytest.mark.slow] if is_slow(page) else [])
        for page in PAGES
        if any(block.reason is None for block in blocks_of(page))
    ]


def aligndet_commands() -> dict[str, list[str]]:
    """Every `aligndet` line of every shell block, run or not, by its text."""
    found = {}
    for block in all_blocks():
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                if line.startswith("aligndet "):
                    found[line] = shlex.split(line, comments=True)
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", pages_with_blocks())
def test_the_blocks_of_a_page_run_in_order(page, photos, mined_dataset, mine_folder, tmp_path, ran):
    workshop = Workshop(tmp_path, page, photos, mined_dataset, mine_folder)
    for block in blocks_of(page):
        if block.reason is None:
            workshop.run(block)
            ran(block.name)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    for line, language, mark, _ in fences(page):
        assert language not in FORBIDDEN, f"{page}:{line}: write bash or python, which are run"
        if mark:
            assert mark.startswith("no-run: "), f"{page}:{line}: {mark}"
            assert len(mark) > len("no-run: ") + 10, f"{page}:{line}: the reason is missing"


def help_of(verb: list[str]) -> str:
    result = CliRunner().invoke(build_app(), [*verb, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("command", aligndet_commands().values(), ids=list(aligndet_commands()))
def test_shell_blocks_name_real_verbs_and_options(command):
    verb = command[1:3] if command[1] == "backbone" else command[1:2]
    text = help_of([word for word in verb if not word.startswith("-")])
    for option in (word for word in command if word.startswith("--")):
        assert option in text


def test_what_the_small_command_changes_are_sizes():
    words = ["pretrain", "--detector", "fcos_lite0", "--data", "OUT", "--work-dir", "W"]
    assert small(words)[: len(words)] == words
    assert small(["mine", "IMAGES", "OUT"]) == ["mine", "IMAGES", "OUT"]
    assert "tests/configs/tiny_fcos.py" in small(["finetune", "--detector", "fcos"])[2]
