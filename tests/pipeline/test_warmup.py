"""What `aligndet warmup` compiles is all that mining an image needs."""

import os
import subprocess
import sys

import pytest

_MINE = """
import hashlib, sys
from pathlib import Path
from numba.core import event

with event.install_recorder("numba:compile") as compiled:
    from pipeline.image_records import Found, Kernel, Stopwatch
    from pipeline.image_task import mine_image
    from proposals.recipe import Recipe

    data = Path(sys.argv[1]).read_bytes()
    found = mine_image(data, hashlib.sha256(data).hexdigest(), Kernel(Recipe(max_side=64)), Stopwatch())
assert isinstance(found, Found)
print(len(compiled.buffer))
"""


@pytest.mark.slow
def test_after_it_the_first_image_compiles_nothing(photos, tmp_path):
    environment = {**os.environ, "ALIGNDET_CACHE_DIR": str(tmp_path)}
    for command, printed in (
        (["-m", "proposals", "warmup"], "compiled in"),
        (["-c", _MINE, photos / "cat.jpg"], "0"),
    ):
        done = subprocess.run(
            [sys.executable, *map(str, command)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(printed), done.stdout
