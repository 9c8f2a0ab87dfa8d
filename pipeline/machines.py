"""Which machines of a cluster fail at what others do: a lost mount, or other libraries, on one of them.

Such a machine is done with an attempt at once, and so would get most of them.
"""

_IN_A_ROW = 8


class Machines:
    """What is known of each machine that attempts ended on, by a name that is its own."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}  # since the last attempt that passed there
        self._told: set[str] = set()
        self.bad: frozenset[str] = frozenset()

    def passed(self, machine: str) -> None:
        """An attempt ended well there."""
        if self._failures.get(machine) != 0:
            self._failures[machine] = 0
            self._told.discard(machine)
            self._judge()

    def failed(self, machine: str) -> bool:
        """An attempt got no images there, or found other libraries; True when it is news that the machine is bad."""
        self._failures[machine] = self._failures.get(machine, 0) + 1
        self._judge()
        news = machine in self.bad - self._told
        self._told |= {machine} & self.bad
        return news

    def _judge(self) -> None:
        """A machine is bad only by comparison: where all fail, it is the source."""
        well = any(failures == 0 for failures in self._failures.values())
        failing = (machine for machine, failures in self._failures.items() if failures >= _IN_A_ROW)
        self.bad = frozenset(failing) if well else frozenset()
