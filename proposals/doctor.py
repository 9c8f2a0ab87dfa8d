"""Floor 1's part of `aligndet doctor`: Python, required packages, which cv2 it is, compiled kernels, extras."""

import os
import platform
import sys
from importlib.metadata import distributions, entry_points, version
from pathlib import Path

from proposals.extras import EXTRAS, install_hint, missing_packages
from proposals.health import Check, one_line, package, requirements

# Not webdataset, which imports torch where that is installed.
_PACKAGES = {
    "numpy": "numpy",
    "numba": "numba",
    "llvmlite": "llvmlite",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "zarr": "zarr",
    "fsspec": "fsspec",
    "upath": "universal-pathlib",
    "aiohttp": "aiohttp",
    "pydantic": "pydantic",
    "typer": "typer",
    "rich": "rich",
}


def checks() -> list[Check]:
    """See proposals.health."""
    return [
        *_machine(),
        *(package(name, distribution) for name, distribution in _PACKAGES.items()),
        *requirements(None),
        _opencv(),
        _kernels(),
        *_verbs(),
        *(_extra(name) for name in EXTRAS),
    ]


def _machine() -> list[Check]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Check("aligndet", "ok", f"{version('aligndet')} at {Path(__file__).parents[1]}"),
        Check("python", "ok", f"{platform.python_version()} at {sys.executable}"),
        Check("system", "ok", f"{platform.platform()}, {usable} of {os.cpu_count()} cores usable"),
    ]


def _opencv() -> Check:
    names = sorted({name for d in distributions() if (name := str(d.metadata["Name"])).startswith("opencv-")})
    owners = ", ".join(f"{name} {version(name)}" for name in names) or "no opencv distribution"
    try:
        import cv2
    except ImportError as error:
        repair = "pip install --force-reinstall --no-deps opencv-contrib-python"
        libraries = "where libGL is missing: apt-get install libgl1 libglib2.0-0"
        return Check("cv2", "broken", f"{one_line(error)} ({owners})", f"{repair}; {libraries}")
    from proposals.opencv import REPAIR, build_identity, has_ximgproc

    build = (
        "contrib build" if has_ximgproc() else "a build without ximgproc: `--engine opencv` alone cannot run"
    )
    found = (
        f"{cv2.__version__} ({build}, {build_identity()['dispatch']}) at {cv2.__file__}; installed: {owners}"
    )
    return Check("cv2", "ok", found) if has_ximgproc() else Check("cv2", "warning", found, REPAIR)


def _kernels() -> Check:
    try:
        from proposals.selective_search import cache

        home, warm = cache.directory(), cache.is_warm()
    except Exception as error:  # numba or its compiler is broken
        return Check(
            "kernels", "broken", one_line(error), "pip install --force-reinstall --no-deps numba llvmlite"
        )
    if home is None:
        found = "no directory can be written, so every process compiles for itself (half a minute)"
        return Check("kernels", "warning", found, "export ALIGNDET_CACHE_DIR=a directory of your own")
    if warm:
        return Check("kernels", "ok", f"compiled, in {home}")
    return Check(
        "kernels",
        "warning",
        f"not compiled yet: the first image takes half a minute ({home})",
        "aligndet warmup",
    )


def _verbs() -> list[Check]:
    found = []
    for entry in sorted(entry_points(group="aligndet.verbs"), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:  # whatever a broken half raises
            again = "pip install --force-reinstall --no-deps .    (in its clone)"
            found.append(Check(f"verbs of {entry.name}", "broken", one_line(error), again))
    return found


def _extra(name: str) -> Check:
    absent = missing_packages(name)
    if absent:
        return Check(f"extra {name}", "missing", f"{', '.join(absent)} not installed", install_hint(name))
    return Check(f"extra {name}", "ok", "installed")
