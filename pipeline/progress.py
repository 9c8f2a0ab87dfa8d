"""What a person sees while mining runs and when it ends."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from pipeline.job import Outcome
from pipeline.shard_task import Count
from proposals.paths import as_path
from proposals.terminal import harmless

_PLAIN_SECONDS = 10.0


class LiveProgress:
    """A live bar on a terminal; a line every ten seconds where the output is a file; nothing when quiet."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._bar = Progress(
            TextColumn("mining"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._images = 0
        self._resumed = Count()
        self._started = self._spoken = time.monotonic()

    def __enter__(self) -> "LiveProgress":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def start(self, images: int, resumed: Count) -> None:
        """See pipeline.driver.Observer."""
        self._images, self._resumed = images, resumed
        self._started = time.monotonic()
        done = resumed.images + resumed.rejected
        self._task = self._bar.add_task("mine", total=images, completed=done, figures="starting Ray")
        if done and not self._quiet:
            with unheard():
                self._console.print(f"resuming: {done} of {images} images are done")

    def update(self, count: Count) -> None:
        """See pipeline.driver.Observer."""
        done, figures = count.images + count.rejected, self._figures(count)
        with unheard():
            self._bar.update(self._task, completed=done, figures=figures)
        now = time.monotonic()
        if not self._quiet and not self._console.is_terminal and now - self._spoken > _PLAIN_SECONDS:
            self._spoken = now
            with unheard():
                self._console.print(f"{done}/{self._images} images, {figures}")

    def say(self, sentence: str) -> None:
        """See pipeline.driver.Observer."""
        if not self._quiet:
            with unheard():
                self._console.print(harmless(sentence), highlight=False, soft_wrap=True, markup=False)

    def _figures(self, count: Count) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-6)
        fresh = count.images + count.rejected - self._resumed.images - self._resumed.rejected
        boxes = count.proposals / max(count.images, 1)
        return f"{fresh / elapsed:.2f} images/s, {boxes:.0f} boxes/image, {count.rejected} rejected"


@contextmanager
def unheard() -> Iterator[None]:
    """A line that nobody can read ends no job: of a log on a full disk, or of a pipe whose reader Ctrl-C ended, too.

    Of the latter Rich makes an exit, and writes nothing any more.
    """
    with suppress(OSError, SystemExit):
        yield


def tell_end(console: Console, outcome: Outcome, out: str, seconds: float, *, retried: bool) -> None:
    """Print what is in the dataset ``out`` (as it was named) now. retried: whether rejected images were to be tried."""
    with unheard():
        if outcome.already_complete:
            console.print(
                f"{out} has no rejected image: nothing to do."
                if retried
                else f"{out} is complete already, mined from the same images by the same recipe: nothing to do.",
                markup=False,
            )
        console.print(summary(outcome, as_path(out), seconds))
        if outcome.manifest.totals.images:
            look = f"look at it: aligndet show {out} --out sheet.png"
            console.print(look, highlight=False, soft_wrap=True, markup=False)


def summary(outcome: Outcome, out: Path, seconds: float) -> Table:
    """The closing table: what is in the dataset and what it cost."""
    totals = outcome.manifest.totals
    table = Table(title=escape(harmless(str(out))), show_header=False, title_justify="left")
    table.add_row("images", f"{totals.images:,} in {len(outcome.manifest.shards):,} shards")
    table.add_row("boxes", f"{totals.proposals:,} ({totals.proposals / max(totals.images, 1):.0f} per image)")
    for status, images in totals.statuses.items():
        if status != "ok":
            table.add_row(f"  {status}", f"{images:,} images")
    table.add_row("rejected", f"{totals.rejected:,}")
    for reason, images in _reasons(outcome).most_common():
        table.add_row(f"  {reason}", f"{images:,}")
    table.add_row("size", f"{totals.bytes / 1e6:,.1f} MB")
    done = outcome.mined.images + outcome.mined.rejected
    if done:
        table.add_row("this run", f"{done:,} images in {seconds:.1f} s ({done / seconds:.2f} images/s)")
        table.add_row("core time", _core_time(outcome.cost, done))
    return table


def _reasons(outcome: Outcome) -> Counter[str]:
    return Counter(row.reason for record in outcome.records.values() for row in record.rejected)


def _core_time(cost: dict[str, float], images: int) -> str:
    stages = sorted(((s, name) for name, s in cost.items() if name != "total"), reverse=True)[:3]
    parts = ", ".join(f"{name} {1000 * s / images:.0f}" for s, name in stages)
    return f"{1000 * cost['total'] / images:.0f} ms/image ({parts})"
