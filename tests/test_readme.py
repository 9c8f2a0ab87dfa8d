"""What the README shows is run: its Python blocks, and the verbs and options its shell blocks name."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def aligndet_commands() -> list[list[str]]:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("aligndet ")]


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split()[1])
def test_python_blocks_run_on_a_mined_dataset(code, mined_dataset, tmp_path, monkeypatch):
    (tmp_path / "OUT").symlink_to(mined_dataset)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "boxes" in run.stdout or "bytes" in run.stdout


@pytest.mark.parametrize("command", aligndet_commands(), ids=lambda words: words[1])
def test_shell_blocks_name_real_verbs_and_options(command):
    help_text = subprocess.run(
        [Path(sys.executable).with_name("aligndet"), command[1], "--help"],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin"},
    )
    assert help_text.returncode == 0, help_text.stderr
    for option in (word for word in command if word.startswith("--")):
        assert option in help_text.stdout


def test_relative_links_lead_somewhere():
    root = Path(__file__).parents[1]
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [t for t in targets if not (root / t).exists()] == []
