"""Faults that tests plant on chosen images. They come from the environment of the process, never from data."""

import json
import os
import signal
import time
from functools import cache

from proposals.fetch import SourceUnavailableError

VARIABLE = "ALIGNDET_PLANTED_FAULTS"
_CHUNK = 64 * 2**20


def strike_child(uri: str) -> None:
    """In the process that searches: ``crash``, ``hang``, ``memory`` or ``slow`` (one second) if planted on ``uri``."""
    fault = _planted().get(uri)
    if fault == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "hang":
        while True:
            time.sleep(3600)
    elif fault == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(_CHUNK))
    elif fault == "slow":
        time.sleep(1)


def strike_worker(uri: str) -> None:
    """In the worker, before it reads ``uri``: ``worker`` ends the process as a native fault would, ``lost`` raises."""
    fault = _planted().get(uri)
    if fault == "worker":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "lost":
        raise SourceUnavailableError(f"the folder of {uri} is not mounted here")


@cache
def _planted() -> dict[str, str]:
    return dict(json.loads(os.environ.get(VARIABLE, "{}")))
