"""Fuzz every reader for a while: what comes out must be a value or an AlignDetError.

python -m tests.attacks.fuzz --seconds 60 [--only image tar] [--engine hypothesis]

Each reader gets sound files, mutated by hypothesis and by atheris (libFuzzer, guided by coverage), in a process of its
own with two gigabytes. Prints a line a run and the totals; ends with 1 when something crashed.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from proposals.errors import AlignDetError
from tests.attacks.fuzz_targets import TARGETS, Target, prepare
from tests.attacks.memory import PLAIN_ALLOCATION, limit_memory
from tests.attacks.readers import READERS

ENGINES = ("hypothesis", "atheris")
_ROOM = 2 * 2**30
_NASTY = (
    b"NaN", b"1e999", b"-1", b"9" * 40, b"null", b"{}", b"[[", b'"\\ud800"', b"../", b"\0", b"\xff" * 8, bytes(8),
    b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80" + bytes(7), b"file:///etc/passwd", b"::", b"\r\n", b"\x89PNG",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One engine on one reader. crash: the exception that came out, if any. input: the bytes that made it, hex."""

    target: str
    engine: str
    runs: int
    crash: str = ""
    input: str = ""


def try_once(target: Target, folder: Path, data: bytes) -> None:
    """Put ``data`` in the place of the target's file and read it; anything but an AlignDetError is raised."""
    (folder / target.place).write_bytes(data)
    with suppress(AlignDetError):
        READERS[target.reader](folder / target.read)


def with_hypothesis(name: str, folder: Path, *, seconds: float = 0, examples: int = 100) -> Run:
    """Mutations of the target's seeds for so many seconds, or (0) so many examples, the same each time."""
    import hypothesis
    from hypothesis import strategies as st

    target, count, last = TARGETS[name], 0, b""
    seeds = target.seeds(folder)
    piece = st.one_of(st.binary(max_size=8), st.sampled_from(_NASTY))
    edit = st.tuples(st.floats(0, 1), st.sampled_from(("put", "insert", "cut", "repeat")), piece)

    @hypothesis.settings(
        max_examples=examples, deadline=None, database=None, derandomize=not seconds,
        suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate],
    )  # fmt: skip
    @hypothesis.given(st.sampled_from(seeds), st.lists(edit, max_size=6))
    def attempt(seed: bytes, edits: list[tuple[float, str, bytes]]) -> None:
        nonlocal count, last
        last = mutated(seed, edits)
        count += 1
        try_once(target, folder, last)

    end = time.monotonic() + seconds
    try:
        attempt()
        while time.monotonic() < end:
            attempt()
    except Exception as error:
        return Run(name, "hypothesis", count, f"{type(error).__name__}: {error}"[:300], last.hex())
    return Run(name, "hypothesis", count)


def mutated(seed: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    """``seed`` after edits at relative places."""
    for where, how, piece in edits:
        at = int(where * len(seed))
        if how == "cut":
            seed = seed[:at] + seed[at + 1 + len(piece) :]
        elif how == "repeat":
            seed = seed[:at] + seed[at : at + 64] * 3 + seed[at + 64 :]
        else:
            seed = seed[:at] + piece + seed[at + (len(piece) if how == "put" else 0) :]
    return seed


def with_atheris(name: str, folder: Path, *, seconds: int) -> Run:
    """The same by libFuzzer, in a process of its own: it never returns."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for place, seed in enumerate(TARGETS[name].seeds(folder)):
        (corpus / str(place)).write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        "-timeout=60",
        "-rss_limit_mb=6000",
        "-print_final_stats=1",
        "-len_control=0",
    ]
    options += [f"-artifact_prefix={folder}/", "-max_len=200000"]
    command = [sys.executable, "-m", "tests.attacks.fuzz", "--atheris-child", name, str(folder)]
    done = subprocess.run([*command, *options, str(corpus)], capture_output=True, timeout=seconds + 300)
    text = done.stderr.decode(errors="replace") + done.stdout.decode(errors="replace")
    runs = re.search(r"stat::number_of_executed_units: (\d+)", text)
    found = [*folder.glob("crash-*"), *folder.glob("timeout-*"), *folder.glob("oom-*")]
    if not found and runs:
        return Run(name, "atheris", int(runs[1]))
    raised = re.findall(r"^(\w+(?:\.\w+)*(?:Error|Exception|Warning)?: .*|\w+Error)$", text, re.MULTILINE)
    crash = raised[-1] if raised else text[-300:]
    data = found[0].read_bytes().hex() if found else ""
    return Run(name, "atheris", int(runs[1]) if runs else 0, crash[:300], data)


def _atheris_child(name: str, folder: Path, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["proposals", "pipeline", "aligndet_train"]):
        for module in TARGETS[name].modules:
            __import__(module)
    target = TARGETS[name]
    atheris.Setup([sys.argv[0], *options], lambda data: try_once(target, folder, data))
    atheris.Fuzz()


def fuzz(name: str, engine: str, seconds: int) -> Run:
    """One run, in a fresh scratch folder and process."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.attacks.fuzz",
        "--child",
        name,
        engine,
        str(seconds),
    ]
    environment = os.environ | PLAIN_ALLOCATION
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 600, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RUN ")), "")
    if not line:
        return Run(name, engine, 0, f"ended with {done.returncode}: {done.stderr[-300:]}")
    return Run(**json.loads(line[4:]))


def _child(name: str, engine: str, seconds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="aligndet-fuzz-") as scratch:
        prepare(TARGETS[name], Path(scratch))
        if engine == "atheris":
            run = with_atheris(name, Path(scratch), seconds=seconds)
        else:
            _load_then_limit_memory(TARGETS[name].modules)
            run = with_hypothesis(name, Path(scratch), seconds=seconds)
    print("RUN " + json.dumps(run.__dict__), flush=True)


def _load_then_limit_memory(modules: tuple[str, ...]) -> None:
    for module in modules:
        __import__(module)
    limit_memory(_ROOM)


def available() -> list[str]:
    """The engines that are installed: atheris has wheels for Linux only."""
    return [engine for engine in ENGINES if find_spec(engine) is not None]


def _runs(names: list[str], engines: list[str], seconds: int) -> Iterator[Run]:
    for name in names:
        for engine in engines:
            run = fuzz(name, engine, seconds)
            print(f"{name:12} {engine:10} {run.runs:9,} runs  {run.crash or 'no crash'}", flush=True)
            if run.input:
                Path(f"crash-{name}-{engine}.hex").write_text(run.input)
            yield run


def main(report: Callable[[str], None] = print) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks.fuzz")
    parser.add_argument("--seconds", type=int, default=60, help="of each engine on each reader")
    parser.add_argument("--only", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--engine", choices=ENGINES)
    chosen = parser.parse_args()
    runs = list(_runs(chosen.only, [chosen.engine] if chosen.engine else available(), chosen.seconds))
    crashes = [run for run in runs if run.crash]
    report(f"{len(chosen.only)} readers, {sum(run.runs for run in runs):,} runs, {len(crashes)} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--atheris-child"]:
        _atheris_child(sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1:2] == ["--child"]:
        _child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())
