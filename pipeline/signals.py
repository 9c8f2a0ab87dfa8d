"""Ctrl-C and SIGTERM: the first lets running shards finish, a second one stops at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Drain:
    """Turns signals into a request to drain, inside a ``with`` block of the main thread.

    Until `allow`, and from the second signal on, a signal raises KeyboardInterrupt: the one exception that Ray's calls
    let through. Elsewhere than in the main thread nothing is handled. ``number``: of the first signal, None so far.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._announce: Callable[[], None] | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Drain":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in _HANDLED}
            self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def allow(self, announce: Callable[[], None]) -> None:
        """From now on there is something to drain; ``announce`` is called when that is asked for."""
        self._announce = announce
        if self._before:
            self.install()

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that the signal ended."""
        return 128 + (self.number or signal.SIGINT)

    def requested(self) -> bool:
        """Whether a signal asked to drain."""
        return self.number is not None

    def install(self) -> None:
        """Handle the signals: again after ray.init, which has handlers of its own."""
        for number in _HANDLED:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        again, self.number = self.number is not None, number
        if again or self._announce is None:
            raise KeyboardInterrupt
        self._announce()
