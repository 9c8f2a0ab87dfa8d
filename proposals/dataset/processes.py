"""Work spread over processes that may die: a share of it each, decided beforehand, and a pipe each to report by.

A process pool shares its queues, and one worker killed while another starts can leave it waiting for ever. Here a
dead process is the end of its own pipe, which is always noticed.
"""

from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessDiedError(Exception):
    """A process ended without a report: killed, or out of memory."""


def map_apart(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> list[Result]:
    """``[function(item) for item in items]``, every ``workers``-th item in a process of its own.

    Both must be picklable by name. Raises what ``function`` raised, or ProcessDiedError; the other processes are
    ended first.
    """
    context = get_context("spawn")
    workers = min(workers, len(items))
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [
        context.Process(target=_run_share, args=(function, items[number::workers], sender), daemon=True)
        for number, (_, sender) in enumerate(pipes)
    ]
    try:
        for process, (_, sender) in zip(processes, pipes, strict=True):
            process.start()
            sender.close()  # the child's copy alone keeps the pipe open
        results: list[Any] = [None] * len(items)
        pending = {receiver: number for number, (receiver, _) in enumerate(pipes)}
        while pending:
            for ready in wait(list(pending)):
                receiver = cast(Connection, ready)
                results[pending.pop(receiver) :: workers] = _report(receiver)
        return results
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _run_share(function: Callable[[Any], Any], share: Sequence[Any], sender: Connection) -> None:
    try:
        sender.send((None, [function(item) for item in share]))
    except Exception as error:
        sender.send((error, []))


def _report(receiver: Connection) -> list[Any]:
    try:
        error, results = receiver.recv()
    except EOFError:
        raise ProcessDiedError from None
    if error is not None:
        raise error
    return list(results)
