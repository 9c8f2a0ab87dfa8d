"""The Ray a job runs on: a private one on this machine, the one it was submitted to, or the one at an address."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from proposals.errors import AlignDetError

# What a worker and the process it searches in take (about 0.6 GiB with photographs).
TASK_MEMORY = 2**30
# Tasks carry names and counts, never pixels: Ray's smallest store is plenty, also where /dev/shm is small.
_OBJECT_STORE_BYTES = 96 * 1024 * 1024


def import_ray() -> Any:
    """The ray module, told to report nothing to anyone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reads it on import
    import ray

    return ray


@contextmanager
def connected(address: str | None, workers: int | None) -> Iterator[Any]:
    """The ray module, connected inside the block.

    address: of a cluster; None: the one that $RAY_ADDRESS names, as inside a job that was submitted to a cluster, else
    a private Ray of ``workers`` cores (None: all of this machine's). Raises AlignDetError when no cluster answers.
    """
    ray = import_ray()
    address = address or os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        _require_listener(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AlignDetError(f"no Ray cluster answers at {address}: {error}") from error
    else:
        cores = workers or len(os.sched_getaffinity(0))
        ray.init(
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _memory=cores * TASK_MEMORY,  # so that every core gets its task, also on a small machine
            _node_ip_address="127.0.0.1",
            address="local",
            **quiet,
        )
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    # Ray itself waits for minutes at an address where nothing listens.
    where = urlsplit(f"//{address.removeprefix('ray://')}")
    if address in ("auto", "local") or where.hostname is None or where.port is None:
        return
    try:
        socket.create_connection((where.hostname, where.port), timeout=5).close()
    except OSError as error:
        raise AlignDetError(
            f"no Ray cluster answers at {address}: {error}. Start one: ray start --head"
        ) from error
