"""The Ray a job runs on: a private one on this machine, the one it was submitted to, or the one at an address."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pipeline.module_folders import job_config
from proposals.errors import AlignDetError

# What a worker and the process it searches in take (about 0.6 GiB with photographs).
TASK_MEMORY = 2**30
_ADDRESS = "RAY_ADDRESS"
# Tasks carry names and counts, never pixels: Ray's smallest store is plenty, also where /dev/shm is small.
_OBJECT_STORE_BYTES = 96 * 1024 * 1024

# A private Ray shares its few cores with the search: what nobody would look at is not collected. Unless the user did.
_LEAN = {
    "RAY_task_events_report_interval_ms": "0",  # for the dashboard, which is not started
    "RAY_raylet_report_resources_period_milliseconds": "1000",  # to other nodes: there are none
    "RAY_memory_monitor_refresh_ms": "1000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # statistics of every process
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # workers' output is not passed on
    "LOG_NAME_UPDATE_INTERVAL_S": "1000000",
}


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
    address = address or _submitted_to()
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is not None:
        _require_listener(address)
        try:
            # A client's modules are its server's.
            own = {} if address.startswith("ray://") else {"job_config": job_config(ray)}
            ray.init(address=address, **own, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise AlignDetError(f"no Ray cluster answers at {address}: {error}") from error
    else:
        _start_private(ray, workers or len(os.sched_getaffinity(0)), quiet)
    try:
        yield ray
    finally:
        ray.shutdown()


def _start_private(ray: Any, cores: int, quiet: dict[str, Any]) -> None:
    try:
        with _environment_of(_LEAN), _on_loopback(ray):
            ray.init(
                num_cpus=cores,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _memory=cores * TASK_MEMORY,  # so that every core gets its task, also on a small machine
                _node_ip_address="127.0.0.1",
                address="local",
                job_config=job_config(ray),
                **quiet,
            )
    except Exception as error:  # Ray's own are plain ones
        ray.shutdown()
        raise AlignDetError(
            f"Ray did not start on this machine: {error} Nothing is lost: run the same command again, perhaps when the "
            "machine is less busy."
        ) from error


def is_private(address: str | None) -> bool:
    """Whether `connected` starts a Ray of its own on this machine for ``address``."""
    return not (address or _submitted_to())


def _submitted_to() -> str | None:
    # An empty variable is how one is taken away.
    return os.environ.get(_ADDRESS) or None


@contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Every server of a Ray that starts inside the block listens on this machine's loopback alone.

    Ray turns 127.0.0.1 into an address that others can reach, and listens on all of them, unless clusters are off.
    """
    constants = ray._private.ray_constants
    before = constants.ENABLE_RAY_CLUSTER
    constants.ENABLE_RAY_CLUSTER = False
    try:
        # For Ray's own processes; on Linux, too, whatever the name says.
        with _environment_of({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}):
            yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _environment_of(settings: dict[str, str]) -> Iterator[None]:
    """``settings`` in the environment inside the block, but for what is set already."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


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
