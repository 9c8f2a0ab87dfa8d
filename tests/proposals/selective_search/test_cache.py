"""Where kernels are kept, who compiles them, and that a read-only or missing place does not stop anybody."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from proposals.selective_search import cache
from proposals.selective_search.warmup import warm_up

PROPOSE = """
import numpy as np
from numba.core import event
from proposals.selective_search import propose

image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
with event.install_recorder("numba:compile") as compiled:
    count = len(propose(image))
print(count, len(compiled.buffer))
"""


@pytest.fixture
def fresh_directory():
    cache.directory.cache_clear()
    yield
    cache.directory.cache_clear()


def run(environment):
    return subprocess.run(
        [sys.executable, "-c", PROPOSE], env={**os.environ, **environment}, capture_output=True, text=True
    )


def test_the_environment_chooses(tmp_path, monkeypatch, fresh_directory):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("ALIGNDET_CACHE_DIR", str(tmp_path / "ours"))
    assert cache.directory().parent == tmp_path / "ours"
    cache.directory.cache_clear()
    monkeypatch.delenv("ALIGNDET_CACHE_DIR")
    assert cache.directory().parent == tmp_path / "numba"


def test_nowhere_to_write(tmp_path, monkeypatch, fresh_directory):
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    monkeypatch.setenv("ALIGNDET_CACHE_DIR", str(blocker))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(blocker))
    assert cache.directory() is None
    assert not cache.is_warm()
    for held in (cache.one_compiler, cache.compile_lock):
        with held():
            pass


def test_a_read_only_warm_cache_is_copied(tmp_path, monkeypatch, fresh_directory):
    shipped = tmp_path / "shipped"
    monkeypatch.setenv("ALIGNDET_CACHE_DIR", str(shipped))
    home = cache.directory()
    (home / "kernel.nbc").write_bytes(b"compiled")
    cache._marker(home).touch()
    usable = cache._usable
    monkeypatch.setattr(cache, "_usable", lambda path: path != home and usable(path))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    cache.directory.cache_clear()
    refuge = cache.directory()
    assert refuge.parent.parent == tmp_path
    assert (refuge / "kernel.nbc").read_bytes() == b"compiled"
    assert cache.is_warm()


AS_ANOTHER_USER = """
import os, sys
from proposals.selective_search import cache

os.setuid(65534)
print(cache.is_warm(), (cache.directory() / "kernel.nbc").read_bytes().decode())
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become another user")
def test_what_root_compiled_and_let_be_read_is_copied_by_another_user(fresh_directory):
    # Not tmp_path: its parents are root's alone.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        environment = {"ALIGNDET_CACHE_DIR": f"{place}/cache", "TMPDIR": f"{place}/tmp"}
        (Path(place) / "tmp").mkdir()
        (Path(place) / "tmp").chmod(0o1777)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ALIGNDET_CACHE_DIR", environment["ALIGNDET_CACHE_DIR"])
            home = cache.directory()
        (home / "kernel.nbc").write_bytes(b"compiled")
        cache._marker(home).touch()
        subprocess.run(["chmod", "-R", "a+rX", f"{place}/cache"], check=True)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == "True compiled", done.stderr


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX permissions here")
def test_a_directory_open_to_others_is_not_trusted(tmp_path, monkeypatch, fresh_directory):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert not cache._usable(shared / "kernels")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no POSIX permissions here")
def test_what_others_may_have_put_there_is_not_copied_either(tmp_path, monkeypatch, fresh_directory):
    shared = tmp_path / "shared"
    home = shared / cache._release()
    home.mkdir(parents=True)
    (home / "kernel.nbi").write_bytes(b"a stranger's pickle")
    cache._marker(home).touch()
    shared.chmod(0o1777)
    monkeypatch.setenv("ALIGNDET_CACHE_DIR", str(shared))
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    refuge = cache.directory()
    assert refuge.parent.parent == tmp_path
    assert list(refuge.iterdir()) == []
    assert not cache.is_warm()


def _logged_by(count, target, folder):
    """What ``count`` processes that run ``target(cache, log)`` at once wrote into the log."""
    context, log = multiprocessing.get_context("spawn"), folder / "log"
    workers = [context.Process(target=target, args=(folder / "cache", log)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return log.read_text()


def _enter(directory, log):
    os.environ["ALIGNDET_CACHE_DIR"] = str(directory)
    with cache.one_compiler():
        if not cache.is_warm():
            with Path(log).open("a") as lines:
                lines.write("compiles\n")
            time.sleep(0.3)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_one_of_many_compiles(tmp_path):
    assert _logged_by(4, _enter, tmp_path) == "compiles\n"


def test_warm_up_leaves_a_warm_cache():
    warmth = warm_up()
    assert warmth.directory == cache.directory()
    assert cache.is_warm()
    assert not warm_up().compiled


def test_the_first_call_of_a_process_compiles_nothing_once_it_is_warm(tmp_path):
    warm_up()
    warm = run({})
    assert warm.returncode == 0, warm.stderr
    assert warm.stdout.split()[1] == "0"


@pytest.mark.slow
def test_no_cache_at_all_still_works(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a directory")
    done = run({"ALIGNDET_CACHE_DIR": str(blocker), "TMPDIR": str(blocker), "HOME": str(blocker)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == run({}).stdout.split()[0]
    assert int(done.stdout.split()[1]) > 0


def _compile_alone(directory, log):
    os.environ["ALIGNDET_CACHE_DIR"] = str(directory)
    with cache.compile_lock():
        for word in ("begins", "ends"):
            with Path(log).open("a") as lines:
                lines.write(f"{word}\n")
            time.sleep(0.1)


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks there")
def test_kernels_that_no_marker_speaks_of_are_compiled_by_one_after_the_other(tmp_path):
    assert _logged_by(3, _compile_alone, tmp_path).split() == ["begins", "ends"] * 3
