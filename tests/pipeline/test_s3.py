"""Mining from and to an object store: a real S3 server on loopback, in a process of its own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from proposals.cli import build_app
from proposals.dataset import open_dataset
from proposals.dataset.verify import verify_dataset
from proposals.errors import AlignDetError
from proposals.fetch import SourceUnavailableError, fetch
from proposals.image_roots import ImageRoot
from proposals.images import ImageRejected
from proposals.paths import as_path
from proposals.recipe import Recipe

pytest.importorskip("moto", reason="the S3 server is moto's: pip install '.[dev]'")

_RECIPE = Recipe(max_side=96)
_OPTIONS = ("--images-per-shard", "2", "--max-side", "96", "--workers", "2")
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bucket():
    """An empty bucket s3://mining; the environment names its server, for this process and its children."""
    server = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    port = next(line for line in server.stdout if line.strip().isdigit()).strip()
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        as_path("s3://mining/x").fs.mkdir("mining")
        yield "s3://mining"
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def images(bucket, photos):
    """The photographs at a URL."""
    root = as_path(f"{bucket}/photos")
    for path in photos.rglob("*.jpg"):
        (root / path.relative_to(photos).as_posix()).fs.put_file(
            str(path), f"mining/photos/{path.relative_to(photos)}"
        )
    return str(root)


def _objects(url):
    root = as_path(url)
    return {
        path.removeprefix(f"{root.path.rstrip('/')}/"): (info["ETag"], str(info["LastModified"]))
        for path, info in root.fs.find(root.path, detail=True).items()
        if info["type"] == "file"
    }


def _download(url, folder):
    root = as_path(url)
    root.fs.get(root.path, str(folder), recursive=True)
    return folder


def _wait_for_records(out, count, mining):
    deadline = time.monotonic() + 120
    while sum(name.endswith(".json") for name in _objects(f"{out}/shards")) < count:
        assert mining.process.poll() is None, mining.printed()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_job_from_s3_to_s3_is_resumed_and_equals_a_local_one(
    bucket, images, photos, start, content, mine_folder, tmp_path
):
    out = f"{bucket}/mined"
    killed = start(images, out, *_OPTIONS)
    _wait_for_records(out, 1, killed)
    os.killpg(killed.process.pid, signal.SIGKILL)
    killed.process.wait()
    done = {name: tag for name, tag in _objects(out).items() if name.endswith(".json") and "tmp" not in name}
    assert "dataset.json" not in _objects(out)
    with pytest.raises(AlignDetError, match="in progress, not a dataset"):
        open_dataset(out)

    status, printed = start(images, out, *_OPTIONS).wait()
    assert status == 0, printed
    assert "resuming" in printed
    finished = _objects(out)
    assert {name: finished[name] for name in done} == done
    assert not verify_dataset(out, deep=True).problems
    mine_folder(as_path(images), as_path(out), _RECIPE, 2)
    assert _objects(out) == finished
    local = mine_folder(photos, tmp_path / "local", _RECIPE, 2)
    assert content(_download(out, tmp_path / "copy")) == content(local)


def test_images_added_in_s3_get_shards_of_their_own(bucket, photos, mine_folder):
    source, out = as_path(f"{bucket}/growing"), as_path(f"{bucket}/grown")
    for name in ("cat", "china", "coffee"):
        source.fs.put_file(str(photos / f"{name}.jpg"), f"mining/growing/{name}.jpg")
    mine_folder(source, out, _RECIPE, 2)
    before = _objects(out)
    source.fs.put_file(str(photos / "flower.jpg"), "mining/growing/flower.jpg")
    mine_folder(source, out, _RECIPE, 2)
    after = _objects(out)
    assert all(after[name] == tag for name, tag in before.items() if name.startswith("shards/"))
    assert len(open_dataset(out)) == 4
    assert not verify_dataset(out, deep=True).problems
    source.fs.rm("mining/growing/cat.jpg")
    with pytest.raises(AlignDetError, match=r"1 images removed: cat\.jpg"):
        mine_folder(source, out, _RECIPE, 2)
    assert _objects(out) == after


@pytest.mark.parametrize(
    ("content", "expected"), [(b"", b""), (b"12345678", b"12345678"), (b"123456789", "too_large")]
)
def test_an_object_is_read_whole_up_to_the_limit(bucket, monkeypatch, content, expected):
    monkeypatch.setattr("proposals.fetch.MAX_IMAGE_BYTES", 8)
    url = f"{bucket}/sizes/{len(content)}.jpg"
    place = as_path(url)
    place.fs.pipe_file(place.path, content)
    if expected == "too_large":
        with pytest.raises(ImageRejected, match="more than 8 bytes") as caught:
            fetch(url)
        assert (caught.value.stage, caught.value.reason) == ("read", expected)
    else:
        assert fetch(url) == expected


def test_no_bytes_of_a_tar_are_no_request(bucket):
    url = f"{bucket}/sizes/x.tar"
    place = as_path(url)
    place.fs.pipe_file(place.path, bytes(10240))
    assert fetch(url, 512, 0) == b""
    assert fetch(f"{bucket}/never-written.tar", 512, 0) == b""


@pytest.mark.parametrize("url", ["s3:///x.jpg", "s3://mining"])
def test_a_url_without_bucket_or_key_is_refused_alone(bucket, url):
    with pytest.raises(ImageRejected) as caught:
        fetch(url)
    assert caught.value.reason == "bad_url"


def test_a_bucket_that_is_gone_is_no_fault_of_an_image(bucket, monkeypatch):
    monkeypatch.setattr("proposals.fetch._PAUSES", ())
    with pytest.raises(SourceUnavailableError, match="NoSuchBucket"):
        fetch("s3://never-made/photo.jpg")
    table = ImageRoot(kind="parquet", root="s3://never-made", column="image")
    with pytest.raises(SourceUnavailableError, match="NoSuchBucket"):
        table.read("a.parquet/0")
    with pytest.raises(ImageRejected, match="nothing at its URL"):
        fetch(f"{bucket}/no-such-photo.jpg")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("ExpiredToken", SourceUnavailableError),
        ("RequestTimeTooSkewed", SourceUnavailableError),
        ("SignatureDoesNotMatch", SourceUnavailableError),
        ("InvalidAccessKeyId", SourceUnavailableError),
        ("AccessDenied", ImageRejected),
        ("403", ImageRejected),
    ],
)
def test_credentials_that_are_refused_are_no_fault_of_an_image(bucket, monkeypatch, code, expected):
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    def refuse(*_, **__):
        raise translate_boto_error(ClientError({"Error": {"Code": code, "Message": "no"}}, "GetObject"))

    monkeypatch.setattr("proposals.fetch._PAUSES", ())
    monkeypatch.setattr(as_path(bucket).fs, "cat_file", refuse)
    with pytest.raises(expected):
        fetch(f"{bucket}/photo.jpg")
    monkeypatch.setattr(as_path(bucket).fs, "open", refuse)
    with pytest.raises(expected):
        ImageRoot(kind="parquet", root=bucket, column="image").read("a.parquet/0")


def _empty_folder(url):
    """What S3's console makes of "create folder": an object of no bytes, whose key ends in a slash."""
    bucket, key = as_path(url).path.rstrip("/").split("/", 1)
    as_path(url).fs.call_s3("put_object", Bucket=bucket, Key=f"{key}/", Body=b"")


def test_a_folder_that_the_console_made_is_empty(bucket, photos, mine_folder):
    out = as_path(f"{bucket}/by-hand")
    _empty_folder(str(out))
    mine_folder(photos, out, _RECIPE, 4)
    _empty_folder(f"{out}/shards")
    assert len(open_dataset(out)) == 8
    report = verify_dataset(out, deep=True)
    assert (report.problems, report.unfinished) == ((), ())


def test_an_out_that_holds_something_else_is_refused_in_s3_too(bucket, photos, mine_folder):
    out = as_path(f"{bucket}/taken")
    _empty_folder(str(out))
    out.fs.pipe_file((out / "deep" / "notes.txt").path, b"mine")
    with pytest.raises(AlignDetError, match="is not empty"):
        mine_folder(photos, out, _RECIPE, 4)


def test_a_damaged_object_is_found(bucket, photos, mine_folder):
    out = mine_folder(photos, as_path(f"{bucket}/damaged"), _RECIPE, 4)
    tar, table = "shards/00000.tar", "shards/00001.parquet"
    content = bytearray((out / tar).read_bytes())
    content[700] ^= 1
    out.fs.pipe_file((out / tar).path, bytes(content))
    out.fs.rm((out / table).path)
    out.fs.pipe_file((out / "shards" / "stranger.txt").path, b"x")
    found = {
        (problem.file, problem.what.split(":")[0]) for problem in verify_dataset(out, deep=True).problems
    }
    assert {(table, "is missing"), ("shards/stranger.txt", "is unexpected")} <= found
    assert any(file == tar and "sha256" in what for file, what in found)


@pytest.mark.parametrize(
    ("url", "message"),
    [("s3://no-such-bucket/x", "no-such-bucket"), ("s3://mining/nothing-here", "not a proposal dataset")],
)
def test_a_wrong_url_is_a_users_error(bucket, url, message):
    with pytest.raises(AlignDetError, match=message):
        open_dataset(url)


def test_verbs_that_look_work_on_a_url_and_those_that_write_say_what_to_do(
    bucket, photos, mine_folder, tmp_path
):
    out = str(mine_folder(photos, as_path(f"{bucket}/shown"), _RECIPE, 4))
    runner, app = CliRunner(), build_app()
    assert runner.invoke(app, ["show", out, "--out", str(tmp_path / "sheet.png")]).exit_code == 0
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert runner.invoke(app, ["stats", out]).exit_code == 0
    assert runner.invoke(app, ["report", out, "-o", str(tmp_path / "page.html")]).exit_code == 0
    assert "8 of 8" in runner.invoke(app, ["status", out]).output
    assert "is clean: 8 images" in runner.invoke(app, ["verify", out]).output
    convert = ["convert", out, str(tmp_path / "boxes.json"), "--to", "coco"]
    merge = ["merge", out, "-o", str(tmp_path / "joined")]
    for verb in (convert, merge, ["consolidate", out], ["verify", out, "--repair"]):
        refusal = runner.invoke(app, verb).exception
        assert isinstance(refusal, AlignDetError), refusal
        assert f"aws s3 sync {out} local/" in str(refusal)
