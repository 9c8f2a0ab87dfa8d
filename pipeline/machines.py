"""Which machines of a cluster fail at what others do: a lost mount, or other libraries, on one of them.

Such a machine is done with an attempt at once, and so would get most of them.
"""

from collections.abc import Callable

_IN_A_ROW = 8


class Machines:
    """What is known of each machine that attempts ended on. living: names those that are there now."""

    def __init__(self, living: Callable[[], frozenset[str]]) -> None:
        self._living = living
        self._failures: dict[str, int] = {}  # since the last attempt that passed there
        self._told: set[str] = set()
        self._judged: tuple[frozenset[str], frozenset[str]] | None = None

    @property
    def bad(self) -> frozenset[str]:
        """Those that fail while another one does well: where all fail, it is the source."""
        living = self._living()
        # Asked for with every attempt, of which there are hundreds a second.
        if self._judged is None or self._judged[0] is not living:
            self._judged = living, self._judge(living)
        return self._judged[1]

    def _judge(self, living: frozenset[str]) -> frozenset[str]:
        failures = {machine: self._failures.get(machine) for machine in living}
        if 0 not in failures.values():
            return frozenset()
        return frozenset(machine for machine, count in failures.items() if count and count >= _IN_A_ROW)

    @property
    def all_known(self) -> bool:
        """Whether an attempt has ended on every machine there is."""
        return self._living() <= self._failures.keys()

    def passed(self, machine: str) -> None:
        """An attempt ended well there."""
        if self._failures.get(machine) != 0:
            self._failures[machine], self._judged = 0, None
            self._told.discard(machine)

    def failed(self, machine: str) -> bool:
        """An attempt got no images there, or found other libraries; True when it is news that the machine is bad."""
        self._failures[machine], self._judged = self._failures.get(machine, 0) + 1, None
        news = machine in self.bad - self._told
        if news:
            self._told.add(machine)
        return news
