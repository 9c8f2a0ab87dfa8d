"""What README and docs show is run: Python blocks on a mined dataset; verbs and options of shell blocks exist.

A block fenced as ``python no-run: reason`` is the only kind that is not.
"""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "docs" / "reading.md"]
ALIGNDET = Path(sys.executable).with_name("aligndet")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def python_blocks() -> list:
    return [
        pytest.param(code, id=f"{page.stem}-{number}-{code.split()[1]}")
        for page in PAGES
        for number, code in enumerate(blocks(page.read_text(), "python"))
    ]


def aligndet_commands() -> list[list[str]]:
    pages = [
        README,
        *((ROOT / "docs" / f"{name}.md").read_text() for name in ("detr-with-clusters", "mining")),
    ]
    lines = [line.split("#")[0] for p in pages for block in blocks(p, "bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("aligndet ")]


@pytest.fixture(scope="module")
def folder_with_out(mined_dataset, tmp_path_factory):
    """A folder that holds OUT, a consolidated dataset of three shards."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(mined_dataset, folder / "OUT")
    subprocess.run([ALIGNDET, "consolidate", folder / "OUT"], check=True)
    return folder


@pytest.mark.parametrize("code", python_blocks())
def test_python_blocks_run_on_a_mined_dataset(code, folder_with_out, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder_with_out, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "boxes" in run.stdout or "bytes" in run.stdout


@pytest.mark.parametrize("command", aligndet_commands(), ids=lambda words: words[1])
def test_shell_blocks_name_real_verbs_and_options(command):
    help_text = subprocess.run(
        [ALIGNDET, command[1], "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )
    assert help_text.returncode == 0, help_text.stderr
    for option in (word for word in command if word.startswith("--")):
        assert option in help_text.stdout


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]), ids=str
)
def test_relative_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []
