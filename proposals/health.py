"""What `aligndet doctor` runs: every half's checks, each half in a process of its own.

A half contributes by an entry point of the group ``aligndet.checks``: a function without arguments that returns a list
of Check. A library that raises, hangs or crashes the process while it is imported costs its half's checks only.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

GROUP = "aligndet.checks"
Status = Literal["ok", "missing", "warning", "broken"]
_SECONDS = 180
_PROGRAM = "aligndet"
_FLOOR_1 = "proposals"
# Another distribution of the same package, which does as well.
_SIBLINGS = {"mmcv-lite": "mmcv", "opencv-contrib-python": "opencv-contrib-python-headless"}


@dataclass(frozen=True)
class Check:
    """One finding. missing: an optional thing that is not there. warning: it works, but not well. repair: a command,
    or what to do."""

    name: str
    status: Status
    found: str
    repair: str | None = None


@dataclass(frozen=True)
class HalfHealth:
    """The findings of one half, a package's name."""

    half: str
    checks: tuple[Check, ...]


def examine() -> list[HalfHealth]:
    """The findings of every half that is installed."""
    names = sorted((entry.name for entry in entry_points(group=GROUP)), key=lambda n: (n != _FLOOR_1, n))
    with ThreadPoolExecutor() as pool:
        return list(pool.map(_examine_apart, names))


def is_healthy(halves: list[HalfHealth]) -> bool:
    """Whether nothing that is installed is broken."""
    return not any(check.status == "broken" for half in halves for check in half.checks)


def package(name: str, distribution: str) -> Check:
    """Whether an installed package can be imported, and its version. name: of the module."""
    number = _version(distribution) or "of unknown version"
    try:
        import_module(name)
    except Exception as error:  # whatever a broken package raises
        again = f"pip install --force-reinstall --no-deps {distribution}"
        return Check(name, "broken", f"{number}, cannot be imported: {one_line(error)}", again)
    return Check(name, "ok", number)


def requirements(extra: str | None) -> list[Check]:
    """A finding for every distribution whose version is not what aligndet (or its ``extra``) asks for."""
    return [check for wanted in _wanted(extra) if (check := _of_wrong_version(wanted)) is not None]


def shared_memory(needed: int, user: str) -> list[Check]:
    """Whether /dev/shm, if the system has it, is of at least ``needed`` bytes. user: what needs it."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return []
    status = os.statvfs(folder)
    size = status.f_blocks * status.f_frsize
    found = f"{size / 2**30:.2f} GiB"
    if size >= needed:
        return [Check("/dev/shm", "ok", found)]
    repair = "docker run --shm-size=2g; Kubernetes: mount an emptyDir of medium Memory at /dev/shm"
    return [Check("/dev/shm", "warning", f"{found}, {user} needs {needed / 2**30:.2f}", repair)]


def one_line(error: BaseException) -> str:
    """Class and first line of an exception."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _wanted(extra: str | None) -> Iterator[Requirement]:
    for text in requires(_PROGRAM) or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if (extra is None and always) or (
            extra is not None and not always and wanted.marker and wanted.marker.evaluate({"extra": extra})
        ):
            yield wanted


def _of_wrong_version(wanted: Requirement) -> Check | None:
    repair = f"pip install '{wanted.name}{wanted.specifier}'"
    installed = _version(wanted.name)
    if installed is None:
        return Check(wanted.name, "broken", "not installed", repair)
    if wanted.specifier.contains(installed, prereleases=True):
        return None
    found = f"{installed} is installed, {wanted.name}{wanted.specifier} is needed"
    return Check(wanted.name, "broken", found, repair)


def _version(distribution: str) -> str | None:
    """Of a distribution or its sibling; None when neither is installed."""
    for name in (distribution, _SIBLINGS.get(distribution)):
        with suppress(PackageNotFoundError):
            if name is not None:
                return version(name)
    return None


def _examine_apart(half: str) -> HalfHealth:
    command = [sys.executable, "-P", "-m", "proposals.health", half]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return _lost(half, f"its checks did not end within {_SECONDS} s")
    try:
        checks = json.loads(done.stdout.splitlines()[-1])
        return HalfHealth(half, tuple(Check(**check) for check in checks))
    except (IndexError, TypeError, ValueError):
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        return _lost(half, f"its checks ended with exit code {done.returncode}: {said[0]}")


def _lost(half: str, why: str) -> HalfHealth:
    return HalfHealth(half, (Check(half, "broken", why, f"pip install --force-reinstall {_PROGRAM}"),))


def main() -> None:
    """``python -m proposals.health HALF``: one half's checks as JSON, the last line of the output."""
    (entry,) = entry_points(group=GROUP, name=sys.argv[1])
    checks = entry.load()()
    print("\n" + json.dumps([asdict(check) for check in checks]), flush=True)
    os._exit(0)  # nothing a library does at exit may spoil the answer


if __name__ == "__main__":
    main()
