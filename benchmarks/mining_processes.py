"""Processor time of a mining job, by what its processes are for. Linux only."""

import os
from pathlib import Path

# The first word that a command line holds decides.
_ROLES = {
    "pipeline.image_child": "search",
    "_remote_attempt": "worker",
    "Agent": "agents",
    "ray::": "other Ray workers",
    "gcs_server": "gcs",
    "raylet/raylet": "raylet",
    "log_monitor.py": "log monitor",
    "monitor.py": "autoscaler",
    "dashboard": "dashboard",
}
_TICKS = os.sysconf("SC_CLK_TCK")


class Processes:
    """Remembers what each process was called: an idle Ray worker drops the name of what it did."""

    def __init__(self) -> None:
        self._roles: dict[int, str] = {}

    def seconds(self) -> dict[str, float]:
        """Processor seconds so far, user and system, of every process in this one's session, by role."""
        session, ticks = os.getsid(0), dict.fromkeys([*_ROLES.values(), "Ray in workers", "driver"], 0)
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) != session:
                    continue
                role, spent = self._role(path.parent), int(fields[11]) + int(fields[12])
                inside = _ticks_of_ray(path.parent) if role == "worker" else 0
                ticks[role] += spent - inside
                ticks["Ray in workers"] += inside
            except OSError:
                continue  # it ended just now
        return {role: count / _TICKS for role, count in ticks.items()}

    def _role(self, process: Path) -> str:
        title = (process / "cmdline").read_text().replace("\0", " ")
        found = next((role for word, role in _ROLES.items() if word in title), "driver")
        number = int(process.name)
        if found != "other Ray workers" or number not in self._roles:
            self._roles[number] = found
        return self._roles[number]


def _ticks_of_ray(worker: Path) -> int:
    """Of the threads that Ray keeps in a worker, which have names of their own, beside those that mine."""
    nanoseconds = 0
    for thread in worker.glob("task/*"):
        if not (thread / "comm").read_text().startswith("ray::"):
            nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return round(nanoseconds * 1e-9 * _TICKS)


def table(spent: dict[str, float], images: int, clock: float) -> str:
    """A line for each role that took processor time: ms an image, and of a core over ``clock`` seconds."""
    return "\n".join(
        f"           {role:17} {1000 * seconds / images:7.2f} ms/image {100 * seconds / clock:7.2f} % of a core"
        for role, seconds in sorted(spent.items(), key=lambda item: -item[1])
        if seconds > 0
    )
