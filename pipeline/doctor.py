"""The mining half's part of `aligndet doctor`: Ray, and the memory it works in."""

import os

from proposals.extras import install_hint, missing_packages
from proposals.health import Check, package, requirements, shared_memory

_GIB = 2**30


def checks() -> list[Check]:
    """See proposals.health."""
    if missing_packages("mine"):
        return [Check("ray", "missing", "not installed: `mine` cannot run", install_hint("mine"))]
    # Before the import: Ray reads it then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return [
        package("ray", "ray"),
        *requirements("mine"),
        *_cluster(),
        *_memory(),
        *shared_memory(_GIB // 8, "a local Ray"),
    ]


def _cluster() -> list[Check]:
    address = os.environ.get("RAY_ADDRESS")
    return [Check("RAY_ADDRESS", "ok", f"{address}: jobs run there")] if address else []


def _memory() -> list[Check]:
    from pipeline.cluster import TASK_MEMORY

    cores = len(os.sched_getaffinity(0))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = f"{have / _GIB:.1f} GiB for {cores} cores"
    if have >= cores * TASK_MEMORY:
        return [Check("memory", "ok", found)]
    return [
        Check(
            "memory",
            "warning",
            f"{found}: a mining worker needs 1 GiB",
            f"mine with --workers {have // TASK_MEMORY}",
        )
    ]
