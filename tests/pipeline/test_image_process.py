"""Images that crash, hang or eat memory, and children that die for other reasons: one image pays, or none."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.image_process import DEPTH, ImageProcess, _ImageFaultError
from pipeline.image_records import Found, Kernel, Refusal, Stopwatch
from pipeline.image_task import mine_image
from pipeline.limits import Limits, default_seconds
from pipeline.planted_faults import VARIABLE
from pipeline.shared_bytes import SharedBytes, read_shared
from proposals.recipe import Recipe

_KERNEL = Kernel(Recipe(max_side=128))


@pytest.fixture
def cat(photos):
    return (photos / "cat.jpg").read_bytes()


@pytest.fixture
def process():
    made = []

    def make(limits=Limits(), kernel=_KERNEL):  # noqa: B008 - frozen
        made.append(ImageProcess(kernel, limits))
        return made[-1]

    yield make
    for one in made:
        one.close()


def _do(process, uri, data):
    process.begin(uri, data, hashlib.sha256(data).hexdigest())
    return process.finish()[0]


def _children(parent=None):
    """Process numbers of the searching children of a process, this one by default."""
    lists = Path(f"/proc/{parent or os.getpid()}/task").glob("*/children")
    found = [int(pid) for path in lists for pid in path.read_text().split()]
    return [pid for pid in found if b"pipeline.image_child" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _is_prepared(pid):
    limits = Path(f"/proc/{pid}/limits").read_text()
    return not re.search(r"Max data size +unlimited", limits)


def _same(found, other):
    return isinstance(found, Found) and np.array_equal(found.proposals.boxes, other.proposals.boxes)


def _here(data, kernel=_KERNEL):
    return mine_image(data, hashlib.sha256(data).hexdigest(), kernel, Stopwatch())


@pytest.mark.parametrize(
    ("fault", "reason", "detail"),
    [
        ("crash", "crashed", "the process was ended by SIGSEGV"),
        ("hang", "timeout", "no result within the time limit"),
        ("memory", "out_of_memory", "more memory needed than the limit"),
    ],
)
def test_an_image_that_the_child_does_not_survive_is_refused_alone(
    fault, reason, detail, cat, process, monkeypatch
):
    monkeypatch.setenv(VARIABLE, json.dumps({"bad.jpg": fault}))
    guarded = process(Limits(seconds=0.7, memory=2**28))
    assert _same(_do(guarded, "good.jpg", cat), _here(cat))
    first, second = _do(guarded, "bad.jpg", cat), _do(guarded, "bad.jpg", cat)
    assert (first.stage, first.reason, first.detail) == ("propose", reason, detail)
    assert first == second
    assert _same(_do(guarded, "good.jpg", cat), _here(cat))


@pytest.mark.parametrize(
    "fault", ["crash", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hang", "memory"))]
)
def test_an_image_that_waits_behind_a_fatal_one_is_searched_all_the_same(
    fault, cat, photos, process, monkeypatch
):
    monkeypatch.setenv(VARIABLE, json.dumps({"bad.jpg": fault}))
    guarded, coffee = process(Limits(seconds=0.7, memory=2**28)), (photos / "coffee.jpg").read_bytes()
    for uri, data in [("cat.jpg", cat), ("bad.jpg", cat)]:
        guarded.begin(uri, data, hashlib.sha256(data).hexdigest())
    assert _same(guarded.finish()[0], _here(cat))
    guarded.begin("coffee.jpg", coffee, hashlib.sha256(coffee).hexdigest())
    assert isinstance(guarded.finish()[0], Refusal)
    assert _same(guarded.finish()[0], _here(coffee))


def test_no_more_images_queue_than_there_are_places_for(cat, process):
    guarded = process()
    for _ in range(DEPTH):
        guarded.begin("cat.jpg", cat, "0" * 64)
    with pytest.raises(ValueError, match="finish one first"):
        guarded.begin("cat.jpg", cat, "0" * 64)


@pytest.mark.parametrize("sizes", [(5, 3, 0, 4), (2, 17 * 2**20, 1, 18 * 2**20)])
def test_shared_bytes_are_the_last_that_were_put(sizes):
    shared = SharedBytes()
    for size in sizes:
        data = os.urandom(size)
        shared.put(data)
        assert read_shared(shared.descriptor, size) == data


def test_real_images_that_need_too_much_memory_are_refused_and_pass_with_more(photos, process):
    large = cv2.imencode(".png", cv2.resize(cv2.imread(str(photos / "cat.jpg")), (3000, 3000)))[1].tobytes()
    kernel = Kernel(Recipe(max_side=1024))
    refused = _do(process(Limits(memory=2**24), kernel), "large.png", large)
    assert isinstance(refused, Refusal)
    assert refused.reason == "out_of_memory"
    assert isinstance(_do(process(Limits(), kernel), "large.png", large), Found)


def test_one_child_serves_many_images_and_a_broken_one_costs_no_child(cat, process):
    guarded = process()
    _do(guarded, "cat.jpg", cat)
    before = _children()
    refused = _do(guarded, "half.jpg", cat[: len(cat) // 2])
    assert (refused.stage, refused.reason) == ("decode", "truncated")
    assert _children() == before


def test_a_child_killed_once_is_no_fault_of_the_image(cat, process):
    guarded = process()
    _do(guarded, "cat.jpg", cat)
    for child in _children():
        os.kill(child, signal.SIGKILL)
    assert _same(_do(guarded, "cat.jpg", cat), _here(cat))


def test_a_child_that_the_machine_keeps_killing_is_an_error_of_the_machine(cat, process, monkeypatch):
    monkeypatch.setenv(VARIABLE, json.dumps({"bad.jpg": "hang"}))
    guarded = process()

    def kill_two():
        for _ in range(2):
            while not (prepared := [child for child in _children() if _is_prepared(child)]):
                time.sleep(0.05)
            os.kill(prepared[0], signal.SIGKILL)
            while prepared[0] in _children():
                time.sleep(0.05)

    killer = threading.Thread(target=kill_two)
    killer.start()
    with pytest.raises(ChildProcessError, match="SIGKILL"):
        _do(guarded, "bad.jpg", cat)
    killer.join()


def test_a_child_that_the_machine_kills_leaves_the_image_both_of_its_attempts(cat, process, monkeypatch):
    guarded = process()
    outcomes = iter([ChildProcessError("killed"), _ImageFaultError("timeout", "it gasped"), None])
    answer = guarded._answer

    def machine_short_of_memory():
        outcome = next(outcomes)
        return answer() if outcome is None else _raise(outcome)

    monkeypatch.setattr(guarded, "_answer", machine_short_of_memory)
    assert _same(_do(guarded, "cat.jpg", cat), _here(cat))


def _raise(error):
    raise error


def test_control_c_in_the_terminal_leaves_the_child_alone(cat, process):
    guarded = process()
    _do(guarded, "cat.jpg", cat)
    (child,) = _children()
    os.kill(child, signal.SIGINT)
    assert _same(_do(guarded, "cat.jpg", cat), _here(cat))
    assert _children() == [child]


def test_the_oracle_draws_the_same_ranks_in_its_child(cat, process):
    kernel = Kernel(Recipe(max_side=128, mode="single", rank="opencv"), "opencv")
    expected = _here(cat, Kernel(kernel.recipe))
    assert _same(_do(process(kernel=kernel), "cat.jpg", cat), expected)


def test_a_child_ends_with_its_parent(cat, tmp_path):
    script = (
        "import hashlib, sys, time; from pipeline.image_process import ImageProcess; "
        "from pipeline.image_records import Kernel; from pipeline.limits import Limits; "
        "from proposals.recipe import Recipe; data = open(sys.argv[1], 'rb').read(); "
        "process = ImageProcess(Kernel(Recipe(max_side=128)), Limits()); "
        "process.begin('bad.jpg', data, '0' * 64); print('busy', flush=True); process.finish()"
    )
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(cat)
    environment = {**os.environ, VARIABLE: json.dumps({"bad.jpg": "hang"})}
    command = [sys.executable, "-c", script, str(picture)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout.readline() == b"busy\n"
        (child,) = _children(parent.pid)
        parent.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_time_limit_grows_with_the_search():
    assert default_seconds(Recipe(), "fast") == 120
    assert default_seconds(Recipe(max_side=2000), "fast") == 480
    assert default_seconds(Recipe(), "opencv") == 1800
