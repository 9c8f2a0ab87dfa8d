"""What a person sees of a run of mmengine's: one line now and then in place of its log, which stays in its file."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, TextIO

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

Volume = Literal["quiet", "normal", "verbose"]
PROGRESS_HOOK = "AlignDetProgressHook"
_SECONDS = 10.0
_terminal: TextIO | None = None


@contextmanager
def volume(chosen: Volume) -> Iterator[None]:
    """Inside, standard output is mmengine's (verbose), ProgressHook's (normal) or nobody's (quiet).

    mmengine's loggers and pycocotools print to the standard output they find. Not for threads: there is only one.
    """
    global _terminal
    if chosen == "verbose":
        yield
        return
    before, _terminal = _terminal, sys.stdout if chosen == "normal" else None
    try:
        with redirect_stdout(_Nowhere()):
            yield
    finally:
        _terminal = before


def say(line: str) -> None:
    """Print ``line`` where a person looks, if the volume is normal and this is the main process."""
    if _terminal is not None and is_main_process():
        print(line, file=_terminal, flush=True)


def warn(line: str) -> None:
    """Print ``line`` to standard error, at any volume, if this is the main process."""
    if is_main_process():
        print(f"warning: {line}", file=sys.stderr, flush=True)


@HOOKS.register_module(name=PROGRESS_HOOK, force=True)
class ProgressHook(Hook):
    """Says where the log is, a line every ten seconds and one after every epoch and evaluation."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self._spoken = self._began = time.monotonic()
        self._from = 0

    def before_train(self, runner: Runner) -> None:
        """Begin to count."""
        say(f"{runner.max_epochs} epochs, log: {runner.log_dir}/{runner.timestamp}.log")
        self._spoken = self._began = time.monotonic()
        self._from = runner.iter

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Speak when it is time."""
        if time.monotonic() - self._spoken > _SECONDS:
            self._speak(runner, runner.iter + 1, outputs)

    def after_train_epoch(self, runner: Runner) -> None:
        """Speak."""
        self._speak(runner, runner.iter, None)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Name the figures, as fractions."""
        figures = {name.split("/")[-1]: value for name, value in (metrics or {}).items()}
        told = ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value >= 0)
        say(f"epoch {runner.epoch}: {told or 'no box was found'}")

    def _speak(self, runner: Runner, done: int, outputs: dict[str, Any] | None) -> None:
        self._spoken = time.monotonic()
        rate = (done - self._from) / max(self._spoken - self._began, 1e-6)
        left = (runner.max_iters - done) / rate if rate else 0.0
        loss = f", loss {outputs['loss'].item():.3f}" if outputs and "loss" in outputs else ""
        say(f"step {done} of {runner.max_iters}{loss}, {rate:.2f} steps/s, {left / 60:.0f} min left")


class _Nowhere(io.TextIOBase):
    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)
