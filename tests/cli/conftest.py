"""The installed command in a process of its own, and packages put in front of the real ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ALIGNDET = Path(sys.executable).with_name("aligndet")

_WITHOUT = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {absent!r} else find_spec(name, package)
sys.modules.update(dict.fromkeys({absent!r}))
"""


@pytest.fixture
def aligndet(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``aligndet(*arguments, shadows={"torch": source}, absent=("ray",))`` runs the command.

    shadows: packages that are imported instead of the real ones. absent: as if they were not installed.
    """

    def run(
        *arguments: object, shadows: dict[str, str] | None = None, absent: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        folder = tmp_path / "shadows"
        for name, source in (shadows or {}).items():
            file = folder / name.replace(".", "/") / "__init__.py"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        if absent:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "sitecustomize.py").write_text(_WITHOUT.format(absent=absent))
        environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"}
        command = [str(ALIGNDET), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    return run
