"""A limit on what a process may allocate from now on."""

import os
import resource
from pathlib import Path

# Arrow's own allocator reserves a gigabyte at its first use or, under a limit, now and then all there is.
PLAIN_ALLOCATION = {"ARROW_DEFAULT_MEMORY_POOL": "system"}


def limit_memory(room: int) -> None:
    """Allow ``room`` bytes of data besides those the process has; what asks for more is told that there is none.

    The process must have been started with PLAIN_ALLOCATION in its environment.
    """
    if not os.environ.items() >= PLAIN_ALLOCATION.items():
        raise RuntimeError(f"start this process with {PLAIN_ALLOCATION}")
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(lines["VmData"].split()[0]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
