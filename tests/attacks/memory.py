"""A limit on what a process may allocate from now on."""

import resource
from pathlib import Path

import pyarrow as pa


def limit_memory(room: int) -> None:
    """Allow ``room`` bytes of data besides those the process has; what asks for more is told that there is none."""
    # Arrow's own allocator reserves a gigabyte at its first use: how little it then makes do with is the kernel's say.
    pa.set_memory_pool(pa.system_memory_pool())
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = int(lines["VmData"].split()[0]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
