"""Sorting more names than should be held in memory: sorted runs, in a temporary file each, are merged."""

import heapq
import json
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO

Pair = tuple[str, str]
_RUN = 500_000


def sorted_pairs(pairs: Iterable[Pair], run: int = _RUN) -> Iterator[Pair]:
    """``sorted(pairs)``, of which at most ``run`` are in memory. ``pairs`` is used up before this returns."""
    rest = iter(pairs)
    first = sorted(islice(rest, run))
    runs: list[TextIO] = []
    if len(first) == run:
        runs = [_written(part) for part in iter(lambda: sorted(islice(rest, run)), [])]
    return heapq.merge(first, *(_read(stream) for stream in runs)) if runs else iter(first)


def _written(pairs: list[Pair]) -> TextIO:
    stream = tempfile.TemporaryFile("w+", encoding="ascii")  # noqa: SIM115 - closed when it is read
    stream.writelines(json.dumps(pair) + "\n" for pair in pairs)
    stream.seek(0)
    return stream


def _read(stream: TextIO) -> Iterator[Pair]:
    with stream:
        for line in stream:
            first, second = json.loads(line)
            yield first, second
