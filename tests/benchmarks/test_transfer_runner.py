"""How `benchmarks/transfer.py run` goes through its jobs; every job here is a real process."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import transfer
from transfer import Runner
from transfer_jobs import Job, best_rate, refuse_other_settings, run_job, settled_rate


def job(folder: Path, name: str, code: str = "pass", needs: tuple[Path, ...] = (), **more) -> Job:
    """A process that runs ``code``; done when its folder says so."""
    command = (sys.executable, "-c", code, *more.pop("options", ()))
    return Job(name, command, folder / name / "finished", needs, **more)


def go(jobs: list[Job], folder: Path, parallel: int = 2, budget: float = 60) -> None:
    Runner(lambda: jobs, folder / "logs", parallel, budget).run()


def test_a_job_waits_for_what_it_needs(tmp_path):
    first = job(tmp_path, "first", "import time; time.sleep(0.3)")
    second = job(
        tmp_path, "second", f"import os; assert os.path.exists({str(first.product)!r})", (first.product,)
    )
    go([second, first], tmp_path)
    assert second.product.exists()


def test_a_failed_job_is_written_down_and_not_repeated(tmp_path):
    count = tmp_path / "count"
    failing = job(tmp_path, "failing", f"open({str(count)!r}, 'a').write('x'); raise SystemExit(3)")
    for _ in range(2):
        go([failing], tmp_path)
    assert json.loads(failing.failure.read_text()) == {"failed": "failing", "exit": 3}
    assert not failing.product.exists()
    assert count.read_text() == "x"


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit(130)"])
def test_a_process_that_was_stopped_is_started_again_by_the_next_run(tmp_path, end):
    """130 is what aligndet returns after Ctrl-C, which a terminal sends to all of its processes."""
    flag = tmp_path / "flag"
    code = f"""
import os, pathlib, signal
flag = pathlib.Path({str(flag)!r})
if not flag.exists():
    flag.touch()
    {end}
"""
    killed = job(tmp_path, "killed", code)
    go([killed], tmp_path)
    assert not killed.product.exists()
    assert not killed.failure.exists()
    go([killed], tmp_path)
    assert killed.product.exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_runner_that_is_ended_takes_its_jobs_with_it_and_begins_no_other(tmp_path, number):
    code = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes are begun without
sys.path.insert(0, BENCHMARKS)
from transfer import Runner
from transfer_jobs import Job
def job(name):
    write = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(50)"
    command = (sys.executable, "-c", write, FOLDER + "/" + name + ".pid")
    return Job(name, command, pathlib.Path(FOLDER, name, "finished"))
jobs = [job("one"), job("two")]
Runner(lambda: jobs, pathlib.Path(FOLDER, "logs"), 1, 60).run()
""".replace("BENCHMARKS", repr(str(Path(transfer.__file__).parent))).replace("FOLDER", repr(str(tmp_path)))
    runner = subprocess.Popen([sys.executable, "-c", code])
    pid = tmp_path / "one.pid"
    while not (pid.is_file() and pid.read_text()):
        time.sleep(0.02)
    runner.send_signal(number)
    assert runner.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (tmp_path / "two.pid").exists()
    assert not (tmp_path / "one" / "failed").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_fault_of_the_runner_itself_ends_the_run_and_is_seen(tmp_path, parallel):
    (tmp_path / "logs").write_text("where a folder should be")
    with pytest.raises(FileExistsError):
        go([job(tmp_path, "one"), job(tmp_path, "two")], tmp_path, parallel)


def test_a_spent_budget_starts_nothing(tmp_path):
    go([job(tmp_path, "late")], tmp_path, budget=0)
    assert not (tmp_path / "late").exists()


def tuned(folder: Path, rate: float, ap: float | None) -> Job:
    """A learning rate's fine-tuning that ended with ``ap``, or with an error."""
    code = "raise SystemExit(1)"
    if ap is not None:
        text = f'{{"last": {{"AP": {ap}}}}}'
        code = f"open({str(folder / str(rate) / 'results.json')!r}, 'w').write({text!r})"
    return job(folder, str(rate), code, labels={"lr": rate})


def test_the_best_rate_is_that_of_those_that_did_not_diverge(tmp_path):
    grid = [tuned(tmp_path, 0.01, 8.0), tuned(tmp_path, 0.02, 9.0), tuned(tmp_path, 0.04, None)]
    assert best_rate(grid) is None
    go(grid[:2], tmp_path)
    assert best_rate(grid) is None, "one of them was not tried yet"
    go(grid, tmp_path)
    assert best_rate(grid) == 0.02


def test_no_rate_is_best_where_all_diverge(tmp_path):
    grid = [tuned(tmp_path, 0.02, None)]
    go(grid, tmp_path)
    assert best_rate(grid) is None


def test_a_folder_that_was_begun_with_other_settings_is_refused(tmp_path):
    labels = tmp_path / "train.json"
    labels.write_text("{}")

    def fine_tuning(*options: str) -> Job:
        return job(tmp_path, "tuned", options=("finetune", *options), inputs=(labels,))

    run_job(fine_tuning("--lr", "0.01", "--workers", "2", "--train", "/one/train.json"), tmp_path / "logs")
    refuse_other_settings(
        fine_tuning("--lr", "0.01", "--workers", "0", "--train", "/another/place/train.json")
    )
    with pytest.raises(SystemExit, match=r"(?s)- --lr 0\.01.*\+ --lr 0\.02"):
        refuse_other_settings(fine_tuning("--lr", "0.02", "--workers", "2", "--train", "/one/train.json"))
    labels.write_text('{"images": []}')
    with pytest.raises(SystemExit, match=r"train\.json"):
        refuse_other_settings(fine_tuning("--lr", "0.01", "--workers", "2", "--train", "/one/train.json"))


def test_a_rate_that_fine_tunings_were_begun_with_stays(tmp_path):
    arm = {"detector": "d", "arm": "box", "source": "d", "schedule": "short"}
    grid = [
        dataclasses.replace(tuned(tmp_path, rate, ap), labels={**arm, "lr": rate})
        for rate, ap in ((0.01, 8.0), (0.02, None))
    ]
    go(grid, tmp_path)
    assert settled_rate(grid) is None
    begun = tmp_path / "final+d+box+d+short+100+0" / "labels.json"
    begun.parent.mkdir()
    begun.write_text(json.dumps({"lr": best_rate(grid)}))
    better = dataclasses.replace(tuned(tmp_path, 0.02, 9.0), labels={**arm, "lr": 0.02})
    better.failure.unlink()
    go([better], tmp_path)
    assert best_rate([grid[0], better]) == 0.02
    assert settled_rate([grid[0], better]) == 0.01
