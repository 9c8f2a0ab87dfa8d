"""Datasets on web servers: that list nothing, give no parts of files, do not say how large they are, or hiccup."""

import pickle
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.cli_status import _WATCH_SECONDS
from pipeline.heartbeat import write_beat
from pipeline.job import proven
from pipeline.plan import ShardTask
from pipeline.status import StatusReader
from proposals.cli import build_app
from proposals.dataset import ProposalReader, open_dataset
from proposals.dataset.bounds import read_bounded
from proposals.dataset.checks.references import reference_faults
from proposals.dataset.consolidated import consolidate
from proposals.dataset.files import file_sha256
from proposals.dataset.manifest import read_manifest, read_record
from proposals.dataset.tables import read_shard
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError, DeniedError, UnansweredError
from proposals.image_roots import ImageRoot
from proposals.paths import as_path
from proposals.remote_files import open_remote, pieces_of
from proposals.report.numbers import collect
from tests.docs.workshop import write_labels
from tests.web_server import Endless, serving


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr("proposals.fetch.time.sleep", lambda seconds: None)


@pytest.fixture
def small_pieces(monkeypatch):
    """As if the files were large."""
    monkeypatch.setattr("proposals.remote_files._PIECE", 1000)
    monkeypatch.setattr("proposals.remote_files._HELD", 1000)


@pytest.fixture(scope="module")
def dataset(mined_dataset, tmp_path_factory):
    """A consolidated copy. Read only."""
    copy = Path(shutil.copytree(mined_dataset, tmp_path_factory.mktemp("web") / "mined"))
    consolidate(copy)
    return copy


def _verbs(url, tmp_path):
    return (
        ["stats", url, "--json"],
        ["show", url, "--out", str(tmp_path / "sheet.png")],
        ["report", url, "-o", str(tmp_path / "page.html")],
    )


_NO_LISTS = ('<a href="style.css">', '<a href="dataset.json">', "<p>nothing here")


@pytest.mark.parametrize("answer", [403, 404, *_NO_LISTS])
def test_a_server_that_lists_nothing_gives_all_that_the_manifest_names(dataset, tmp_path, answer):
    runner, app = CliRunner(), build_app()
    with serving(dataset.parent, index=answer) as server:
        url = f"{server}/mined"
        for verb in _verbs(url, tmp_path):
            found = runner.invoke(app, verb)
            assert found.exit_code == 0, (found.output, found.exception)
        assert '"name": "mined"' in runner.invoke(app, ["stats", url, "--json"]).output
        report = verify_dataset(url, deep=True)
        assert (report.problems, report.unfinished, report.listed) == ((), (), False)
        shown = runner.invoke(app, ["verify", url]).output
        assert "does not list folders" in shown
        assert "is clean: 8 images" in shown


def test_recall_takes_a_url_and_says_whose_figures_it_prints(dataset, tmp_path):
    write_labels(dataset, tmp_path / "labels.json")
    with serving(dataset.parent) as server:
        command = ["recall", f"{server}/mined", "--gt", str(tmp_path / "labels.json"), "--json"]
        found = CliRunner().invoke(build_app(), command)
    assert found.exit_code == 0, (found.output, found.exception)
    assert f'"{server}/mined"' in found.output


@pytest.mark.parametrize("answer", [403, 404, *_NO_LISTS])
def test_status_of_a_server_that_lists_nothing_is_that_of_the_manifest(dataset, tmp_path, answer):
    expected = StatusReader(dataset).read().as_json()
    with serving(dataset.parent, index=answer) as server:
        found = StatusReader(as_path(f"{server}/mined")).read()
        assert found.as_json() == {**expected, "listed": False}
        shown = CliRunner().invoke(build_app(), ["status", f"{server}/mined"]).output
        assert "8 of 8 (100.0 %)" in shown
        assert "complete by its dataset.json" in shown
    if isinstance(answer, str) and "href" in answer:
        return  # of an unfinished one nobody knows whether the page is a list
    begun = Path(shutil.copytree(dataset, tmp_path / "begun"))
    (begun / "dataset.json").unlink()
    with serving(begun, index=answer) as url, pytest.raises(AlignDetError, match="does not list folders"):
        StatusReader(as_path(url)).read()


def test_a_job_without_a_shard_yet_is_told_where_folders_are_listed(dataset, tmp_path):
    begun = Path(shutil.copytree(dataset, tmp_path / "begun"))
    (begun / "dataset.json").unlink()
    shutil.rmtree(begun / "shards")
    with serving(begun) as url:
        found = StatusReader(as_path(url)).read()
    assert (found.state, found.shards_done, found.planned, found.listed) == ("stopped", 0, 8, True)


def test_strangers_are_found_where_folders_are_listed(dataset, tmp_path):
    copy = Path(shutil.copytree(dataset, tmp_path / "copy"))
    (copy / "shards" / "stranger.txt").write_text("x")
    with serving(copy) as url:
        report = verify_dataset(url)
    assert report.listed
    assert [problem.file for problem in report.problems] == ["shards/stranger.txt"]


@pytest.mark.parametrize(("wrong", "times"), [(503, 2), (429, 4), ("cut", 1), ("cut", 2)])
def test_what_goes_wrong_twice_is_asked_for_again(dataset, wrong, times):
    """A size is asked for by two requests, HEAD and GET."""
    files = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()}
    with serving(dataset, wrong=dict.fromkeys(files, wrong), times=times) as url:
        report = verify_dataset(url, deep=True)
    assert (report.problems, report.listed) == ((), True)


_FILES = (
    "dataset.json",
    "plan.parquet",
    "rejected.parquet",
    "shards/00001.json",
    "shards/00001.parquet",
    "shards/00001.tar",
    "rank/c/0",
)


@pytest.mark.parametrize("wrong", [503, "cut", 403])
@pytest.mark.parametrize("name", _FILES)
def test_what_does_not_answer_is_no_damage(dataset, tmp_path, name, wrong):
    refused = wrong == 403
    with serving(dataset, wrong={name: wrong}) as url:
        if (name, wrong) != ("dataset.json", 403):
            with pytest.raises(
                DeniedError if refused else UnansweredError, match=rf"{name} cannot be reached"
            ):
                verify_dataset(url, deep=True)
        for verb in _verbs(url, tmp_path):
            found = CliRunner().invoke(build_app(), verb)
            assert found.exit_code == 0 or isinstance(found.exception, AlignDetError), found.exception
            assert "damaged" not in str(found.exception)
            if name == "shards/00001.parquet":
                assert f"{name} cannot be reached" in str(found.exception)


def test_what_is_not_there_is_missing(dataset):
    with serving(dataset, wrong={"shards/00001.parquet": 404}) as url:
        (problem,) = verify_dataset(url).problems
    assert (problem.file, problem.what) == ("shards/00001.parquet", "is missing")


def test_a_tars_size_is_asked_for_where_boxes_are_many(dataset, monkeypatch):
    with serving(dataset, wrong={"shards/00001.tar": 503}) as url:
        assert open_dataset(url).table().equals(open_dataset(dataset).table())
        monkeypatch.setattr("proposals.dataset.tables._MANY_BOXES", 10)
        with pytest.raises(UnansweredError, match=r"00001\.tar"):
            open_dataset(url).table()


def test_processes_that_verify_hand_on_that_nobody_answered(dataset):
    with (
        serving(dataset, wrong={"shards/00002.tar": 503}) as url,
        pytest.raises(UnansweredError, match="503"),
    ):
        verify_dataset(url, workers=2)


@pytest.mark.parametrize("how", [{"parts": False}, {"parts": False, "sized": False}, {"sized": False}, {}])
def test_a_dataset_is_read_whatever_a_server_can_do(dataset, tmp_path, small_pieces, how):
    expected = open_dataset(dataset)
    with serving(dataset, **how) as url:
        assert verify_dataset(url, deep=True).problems == ()
        assert StatusReader(as_path(url)).read() == StatusReader(dataset).read()
        found = open_dataset(url)
        assert [found.image_bytes(i) for i in range(8)] == [expected.image_bytes(i) for i in range(8)]
        assert found.table().equals(expected.table())
        batch, wanted = ProposalReader(url, "zarr")[2:7], ProposalReader(dataset, "zarr")[2:7]
        assert np.array_equal(batch.boxes, wanted.boxes)
        for verb in _verbs(url, tmp_path):
            assert CliRunner().invoke(build_app(), verb).exit_code == 0


@pytest.mark.parametrize("parts", [True, False])
def test_a_remote_file_is_as_a_local_one(tmp_path, small_pieces, parts):
    data = np.random.default_rng(0).bytes(25_117)
    for name, content in (("x", data), ("empty", b""), ("piece", data[:1000])):
        (tmp_path / name).write_bytes(content)
    chance = random.Random(0)
    with serving(tmp_path, parts=parts) as url:
        for name in ("x", "empty", "piece"):
            path, local = as_path(f"{url}/{name}"), tmp_path / name
            assert b"".join(pieces_of(path)) == local.read_bytes()
            assert file_sha256(path) == file_sha256(local)
            with open_remote(path) as there, local.open("rb") as here:
                assert there.seek(0, 2) == here.seek(0, 2)
                for _ in range(60):
                    place, size = (
                        chance.randrange(26_000),
                        chance.choice((0, 1, 8, 999, 1000, 1001, 7000, -1)),
                    )
                    assert there.seek(place) == here.seek(place)
                    assert there.read(size) == here.read(size)
                    assert there.tell() == here.tell()


def test_a_file_without_size_and_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("proposals.remote_files._LARGEST_COPY", 2**23)
    with (
        serving(tmp_path, Endless) as url,
        pytest.raises(UnansweredError, match="this server cannot serve parts of files"),
    ):
        read_bounded(as_path(f"{url}/dataset.json"), 2**20)


def test_a_file_that_goes_on_behind_its_size_is_hashed_no_further(tmp_path, monkeypatch):
    monkeypatch.setattr("proposals.remote_files._PIECE", 1000)
    (tmp_path / "local").write_bytes(bytes(2000))
    with serving(tmp_path, Endless) as url:
        found = file_sha256(as_path(f"{url}/shards/00000.tar"), 2000)
    assert found != file_sha256(tmp_path / "local")


def test_who_watches_a_job_goes_on_when_its_server_hiccups(dataset, tmp_path, monkeypatch):
    running = Path(shutil.copytree(dataset, tmp_path / "running"))
    finished = (running / "dataset.json").read_bytes()
    last = running / "shards" / "00002.json"
    record = last.read_bytes()
    for path in (running / "dataset.json", last):
        path.unlink()
    write_beat(running, {"updated": time.time(), "running": [], "failed": {}, "rate": 1.0})
    wrong: dict[str, int] = {}

    def breaks_off():
        last.write_bytes(record)
        wrong["00002.json"] = 503

    def recovers():
        wrong.clear()
        (running / "dataset.json").write_bytes(finished)

    coming = iter((breaks_off, recovers))
    monkeypatch.setattr(time, "sleep", lambda seconds: next(coming)() if seconds == _WATCH_SECONDS else None)
    with serving(running, wrong=wrong) as url:
        shown = CliRunner().invoke(build_app(), ["status", url, "--watch"])
    assert shown.exit_code == 0, (shown.output, shown.exception)
    assert "2 of 3 done" in shown.output
    assert "its server answers 503" in shown.output
    assert "3 of 3 done" in shown.output


def test_a_shard_whose_proof_nobody_answers_for_is_not_proven(dataset):
    record = read_record(dataset / "shards" / "00001.json")
    task = ShardTask("00001", (), ())
    with serving(dataset, wrong={"00001.tar": 503}) as url:
        assert proven(as_path(url), record.job, task) is None
    with serving(dataset) as url:
        assert proven(as_path(url), record.job, task) == record


def test_what_is_too_large_to_be_read_is_not_copied_first(tmp_path, monkeypatch):
    (tmp_path / "dataset.json").write_bytes(bytes(5 * 2**20))
    monkeypatch.setattr("proposals.remote_files._HELD", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "no folder for a copy"))
    with serving(tmp_path, parts=False) as url:
        with pytest.raises(AlignDetError, match="the format allows 1000"):
            read_bounded(as_path(f"{url}/dataset.json"), 1000)
        with pytest.raises(
            UnansweredError, match="no folder for a copy has no room for a copy: No such file"
        ):
            read_bounded(as_path(f"{url}/dataset.json"), 2**30)
        monkeypatch.setattr("proposals.remote_files._LARGEST_COPY", 2**20)
        with pytest.raises(UnansweredError, match="too large to copy"):
            read_bounded(as_path(f"{url}/dataset.json"), 2**30)


def test_a_reader_of_arrays_on_a_web_server_goes_to_other_processes(dataset):
    with serving(dataset) as url:
        reader = pickle.loads(pickle.dumps(ProposalReader(url, "zarr")))
        assert np.array_equal(reader[3][0], ProposalReader(dataset)[3][0])


def test_images_elsewhere_that_nobody_answers_for_are_no_damage(photos, mine_folder, tmp_path):
    manifest = read_manifest(mine_folder(photos, tmp_path / "out", embed=False))
    table = read_shard(tmp_path / "out", manifest.shards[0])
    with serving(photos) as url:
        assert list(reference_faults(ImageRoot(kind="folder", root=url), table)) == []
    with (
        serving(photos, wrong={".jpg": 503}) as url,
        pytest.raises(UnansweredError, match="cannot be reached"),
    ):
        list(reference_faults(ImageRoot(kind="folder", root=url), table))
    with serving(photos, wrong={".jpg": 404}) as url:
        assert len(list(reference_faults(ImageRoot(kind="folder", root=url), table))) == 3


def test_the_cost_that_nobody_answers_for_is_left_out(dataset):
    with serving(dataset, wrong={"00001.json": 503}) as url:
        found = collect(open_dataset(url))
    assert found.images == 8
    assert found.cost is not None
    assert found.cost.shards == 2
