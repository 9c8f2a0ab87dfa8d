"""No function is over 80 lines, and the script that says so can tell."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _sizes(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/function_sizes.py", *map(str, folders)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_no_function_of_the_product_is_over_80_lines():
    done = _sizes()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "median" in done.stdout


def test_a_longer_one_is_named_and_fails(tmp_path):
    (tmp_path / "long.py").write_text("def sprawl():\n" + "    x = 1\n" * 80)
    done = _sizes(tmp_path)
    assert done.returncode == 1
    assert "81" in done.stdout
    assert "sprawl" in done.stdout
