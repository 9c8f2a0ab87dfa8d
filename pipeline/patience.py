"""A store that is throttled or cut off while the whole is committed: asked again, as each of the shards was."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.claim import Say
from pipeline.executor import Fault
from pipeline.faults import fault_of
from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.paths import is_remote

_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0)

Answer = TypeVar("Answer")


def patiently(out: Path, step: Callable[[], Answer], say: Say) -> Answer:
    """What ``step`` returns, tried ten times with growing pauses where ``out`` is a URL and does not answer.

    step: may be done twice. Raises AlignDetError when nobody answers in the end, and at once what ``step`` raises for
    another reason, or of a local ``out``.
    """
    for pause in (*_PAUSES, None):
        try:
            return step()
        except (OSError, UnansweredError) as error:
            if not _is_of_the_moment(out, error):
                raise
            if pause is None:
                raise AlignDetError(
                    f"{out} does not answer: {error}. All that was done is kept: run the same command again once it "
                    "does."
                ) from error
            say(f"{out} does not answer ({error}), trying again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")


def _is_of_the_moment(out: Path, error: OSError | UnansweredError) -> bool:
    if not is_remote(out) or isinstance(error, (DeniedError, FileNotFoundError)):
        return False
    return isinstance(error, UnansweredError) or fault_of(error, remote=True) is Fault.busy
