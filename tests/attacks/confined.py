"""A process that reads hostile files in children of its own, each with little memory and little time.

python -m tests.attacks.confined: a line of JSON in, [reader, path, megabytes, seconds]; a line of JSON out,
[kind, text, megabytes taken].
"""

import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.attacks.memory import PLAIN_ALLOCATION, limit_memory
from tests.attacks.readers import READERS


@dataclass(frozen=True)
class Outcome:
    """kind: value, refused (an AlignDetError) or crash. text: the value, message or exception. peak: MB taken."""

    kind: str
    text: str
    peak: int


class Confined:
    """The process. ``read`` raises nothing for anything that a reader does."""

    def __init__(self) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "tests.attacks.confined"]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=os.environ | PLAIN_ALLOCATION,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def read(self, reader: str, path: Path, megabytes: int = 256, seconds: int = 60) -> Outcome:
        """What ``reader`` makes of ``path`` with ``megabytes`` besides what its process takes anyway."""
        self._process.stdin.write(json.dumps([reader, str(path), megabytes, seconds]) + "\n")
        self._process.stdin.flush()
        return Outcome(*json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Serve standard input."""
    # Libraries print to standard output, too.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    os.dup2(2, 1)
    for line in sys.stdin:
        reader, path, megabytes, seconds = json.loads(line)
        _load(reader)
        answers.write(json.dumps(_in_a_child(reader, Path(path), megabytes, seconds)) + "\n")
        answers.flush()


def _load(reader: str) -> None:
    """Import before the child is made, so that it pays for nothing but the file."""

    import proposals.convert.coco
    import proposals.convert.pickles
    import proposals.convert.soco
    import proposals.dataset.verify
    import proposals.ground_truth
    import proposals.images
    import proposals.report  # noqa: F401

    if reader in ("checkpoint", "weights", "exported"):
        import aligndet_train.backbones.inspect
        import aligndet_train.export  # noqa: F401


def _in_a_child(reader: str, path: Path, megabytes: int, seconds: int) -> tuple[str, str, int]:
    end, start = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(end)
        _limit(megabytes, seconds)
        os.write(start, json.dumps(_outcome(reader, path)).encode())
        os._exit(0)
    os.close(start)
    with os.fdopen(end, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not answer:
        return "crash", "hung" if status == -signal.SIGALRM else f"ended with {status}", 0
    return json.loads(answer)


def _limit(megabytes: int, seconds: int) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    limit_memory(megabytes * 2**20)


def _outcome(reader: str, path: Path) -> tuple[str, str, int]:
    from proposals.errors import AlignDetError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        kind, text = "value", str(READERS[reader](path))
    except AlignDetError as error:
        kind, text = "refused", str(error)
    except BaseException as error:
        kind, text = "crash", f"{type(error).__name__}: {error}"
    return kind, text[:20000], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


if __name__ == "__main__":
    main()
