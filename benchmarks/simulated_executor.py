"""A cluster in virtual time: the scheduler's loop runs for real, the work takes as long as it is told to."""

import heapq
from collections import deque
from collections.abc import Callable

from pipeline.executor import Attempt, End

# What becomes of an attempt, and after how many seconds of work.
Behaviour = Callable[[Attempt], tuple[float, End]]


class SimulatedExecutor:
    """See `pipeline.executor.Executor`. ``slots`` workers take attempts in order; nothing else costs time."""

    def __init__(self, slots: int, behaviour: Behaviour) -> None:
        self._slots, self._behaviour = slots, behaviour
        self._clock = 0.0
        self._queue: deque[Attempt] = deque()
        self._running: list[tuple[float, int, End]] = []
        self._cancelled: set[int] = set()
        self.most_in_flight = 0

    @property
    def slots(self) -> int:
        """See `Executor`."""
        return self._slots

    @property
    def machines(self) -> frozenset[str]:
        """See `Executor`: nothing is known of them."""
        return frozenset()

    def start(self, attempt: Attempt) -> None:
        """See `Executor`."""
        self._queue.append(attempt)
        self._fill()
        self.most_in_flight = max(self.most_in_flight, len(self._queue) + len(self._running))

    def wait(self, seconds: float) -> list[End]:
        """See `Executor`. The clock moves to the next end, or by ``seconds`` if that is sooner."""
        if not self._running or self._running[0][0] > self._clock + seconds:
            self._clock += seconds
            return []
        self._clock, number, end = heapq.heappop(self._running)
        self._fill()
        return [] if number in self._cancelled else [end]

    def cancel(self, number: int) -> None:
        """See `Executor`."""
        self._cancelled.add(number)

    def now(self) -> float:
        """See `Executor`: virtual seconds."""
        return self._clock

    def _fill(self) -> None:
        while self._queue and len(self._running) < self._slots:
            attempt = self._queue.popleft()
            seconds, end = self._behaviour(attempt)
            heapq.heappush(self._running, (self._clock + seconds, attempt.number, end))
