"""The search as a shard task calls it, repeatable also in a process that has other threads."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

from proposals.images import Bgr
from proposals.selective_search import Engine, Mode, Proposals, propose

Search = Callable[[Bgr, Mode, int], Proposals]


@contextmanager
def searcher(engine: Engine) -> Iterator[Search]:
    """A function (bgr, mode, seed) -> Proposals, valid inside the block.

    OpenCV draws ranks from C's `rand()`, which every thread of a process advances, and a Ray worker has threads
    that do: the oracle therefore searches in a child process of its own. Raises ChildProcessError when that dies.
    """
    if engine != "opencv":
        yield partial(propose, engine=engine)
        return
    spawn = get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=_serve, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    try:
        yield partial(_ask, ours)
    finally:
        ours.close()
        child.join()


def _ask(connection: Connection, bgr: Bgr, mode: Mode, seed: int) -> Proposals:
    try:
        connection.send((bgr, mode, seed))
        reply = connection.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise ChildProcessError("the process that ran OpenCV's selective search died") from error
    if isinstance(reply, Proposals):
        return reply
    raise reply


def _serve(connection: Connection) -> None:
    # Ends when the other end is closed, so also when the worker is killed.
    with suppress(EOFError):
        while True:
            bgr, mode, seed = connection.recv()
            try:
                reply: Proposals | Exception = propose(bgr, mode, seed, "opencv")
            except Exception as error:
                reply = error
            connection.send(reply)
