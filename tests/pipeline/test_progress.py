"""What a log and a terminal show of a job that runs and of one that ended."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from pipeline import progress
from pipeline.job import Outcome
from pipeline.progress import LiveProgress, summary, tell_end
from pipeline.shard_task import Count
from proposals.dataset import layout
from proposals.dataset.manifest import read_manifest, read_record


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.seconds)
    return now


def _log(clock, resumed, counts, *, quiet=False, terminal=False):
    """The lines of a run whose counts come every four seconds."""
    file = io.StringIO()
    with LiveProgress(Console(file=file, width=200, force_terminal=terminal), quiet) as shown:
        shown.start(100, resumed)
        for count in counts:
            clock.seconds += 4.0
            shown.update(count)
        shown.say("shard \x1b[31m00001[/]: [bold]throttled")
    return file.getvalue()


def test_a_log_has_a_line_every_ten_seconds_with_the_pace_of_this_run(clock):
    counts = [Count(20 + 4 * step, 100 * (20 + 4 * step), 10 + step) for step in range(1, 8)]
    lines = _log(clock, Count(20, 2000, 10), counts).splitlines()
    assert lines == [
        "resuming: 30 of 100 images are done",
        "45/100 images, 1.25 images/s, 100 boxes/image, 13 rejected",
        "60/100 images, 1.25 images/s, 100 boxes/image, 16 rejected",
        r"shard \x1b[31m00001[/]: [bold]throttled",
    ]


def test_a_run_that_resumes_nothing_and_has_no_image_yet_says_so(clock):
    lines = _log(clock, Count(), [Count()] * 3).splitlines()
    assert lines[0] == "0/100 images, 0.00 images/s, 0 boxes/image, 0 rejected"
    assert len(lines) == 2


def test_a_quiet_run_prints_nothing_anywhere(clock):
    counts = [Count(10 * step, step) for step in range(1, 10)]
    for terminal in (False, True):
        assert _log(clock, Count(5), counts, quiet=True, terminal=terminal) == ""


def test_a_terminal_has_a_bar_and_no_lines_of_a_log(clock):
    shown = _log(clock, Count(), [Count(10 * step, step) for step in range(1, 10)], terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "mining" in plain
    assert "90/100 images" not in plain


def _outcome(dataset, **changes):
    manifest = read_manifest(dataset)
    records = {shard.name: read_record(layout.record_path(dataset, shard.name)) for shard in manifest.shards}
    return Outcome(manifest, records, **changes)


def _printed(show):
    file = io.StringIO()
    show(Console(file=file, width=200))
    lines = re.sub(r"[─-╿]", " ", file.getvalue()).splitlines()
    return [" ".join(line.split()) for line in lines if line.strip()]


def test_the_closing_table_adds_up(photos, mine_folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.jpg").write_bytes((photos / "cat.jpg").read_bytes())
    (tmp_path / "in" / "torn.jpg").write_bytes(b"no image")
    dataset = mine_folder(tmp_path / "in", tmp_path / "out")
    cost = {"total": 3.0, "propose": 1.5, "read": 0.9, "write": 0.5, "decode": 0.1}
    outcome = _outcome(dataset, mined=Count(1, 0, 1), cost=cost)
    (reason,) = (row.reason for record in outcome.records.values() for row in record.rejected)
    lines = _printed(lambda console: console.print(summary(outcome, Path("[red]out\x1b"), 4.0)))
    totals = outcome.manifest.totals
    assert lines[0] == r"[red]out\x1b"
    assert lines[1:] == [
        "images 1 in 1 shards",
        f"boxes {totals.proposals:,} ({totals.proposals} per image)",
        "rejected 1",
        f"{reason} 1",
        f"size {totals.bytes / 1e6:,.1f} MB",
        "this run 2 images in 4.0 s (0.50 images/s)",
        "core time 1500 ms/image (propose 750, read 450, write 250)",
    ]


def test_a_dataset_without_an_image_is_not_offered_to_be_looked_at(photos, mine_folder, tmp_path):
    for name, content in (("torn", b"no image"), ("cat", (photos / "cat.jpg").read_bytes())):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").write_bytes(content)
        outcome = _outcome(mine_folder(tmp_path / name, tmp_path / f"out-{name}"), already_complete=True)
        lines = _printed(lambda console: tell_end(console, outcome, "out", 0.0, retried=False))  # noqa: B023
        assert "out is complete already" in lines[0]
        assert not any(line.startswith(("this run", "core time")) for line in lines)
        assert any("aligndet show out" in line for line in lines) == (name == "cat")
