"""Addresses on which a process and its descendants listen, from Linux's /proc."""

import ipaddress
from pathlib import Path


def listening_addresses(pid: int) -> set[str]:
    """Of TCP sockets; an IPv4 address in IPv6's clothes is given as IPv4."""
    sockets = {name for process in _tree(pid) for name in _sockets(process)}
    return {_address(row[1]) for row in _tcp() if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


def _tree(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [pid, *(process for child in children for process in _tree(child))]


def _sockets(pid: int) -> list[str]:
    names = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            names.append(str(descriptor.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return names


def _tcp() -> list[list[str]]:
    return [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]


def _address(hexadecimal: str) -> str:
    host = bytes.fromhex(hexadecimal.split(":")[0])
    # Words of four bytes in the machine's order.
    address = ipaddress.ip_address(b"".join(host[i : i + 4][::-1] for i in range(0, len(host), 4)))
    return str(getattr(address, "ipv4_mapped", None) or address)
