"""`aligndet regions` on a real Ray: killed, resumed, and equal to one process that encodes image by image."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from aligndet_train.regions import RegionEncoder, region_settings
from pipeline.regions import RegionOptions, _RegionActor, extract_regions
from proposals.dataset import layout, open_dataset
from proposals.dataset.regions import RegionStore
from proposals.errors import AlignDetError
from proposals.images import decode_bgr

TINY = str(Path(__file__).parents[1] / "configs" / "tiny_fcos.py")
ALIGNDET = Path(sys.executable).with_name("aligndet")


def command(root, short_side=96):
    return [ALIGNDET, "regions", root, "--backbone", TINY, "--short-side", str(short_side), "--workers", "1"]


@pytest.fixture
def shards_of_one(photos, tmp_path, mine_folder):
    """Eight photographs in eight shards."""
    return mine_folder(photos, tmp_path / "dataset", images_per_shard=1)


@pytest.mark.slow
def test_killed_and_resumed_features_are_those_of_one_process(shards_of_one):
    root = shards_of_one
    running = subprocess.Popen(command(root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (root / layout.REGIONS / "00001").is_dir() and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    store, manifest = RegionStore(root), open_dataset(root).manifest
    before = {path.name for path in store.path.iterdir() if path.is_dir()}
    assert before
    times = {
        name: (store.path / name).stat().st_mtime_ns for name in before if store.has(entry(manifest, name))
    }
    done = subprocess.run(command(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(manifest.shards)}/{len(manifest.shards)} shards" in done.stdout
    assert all((store.path / name).stat().st_mtime_ns == then for name, then in times.items())
    assert not list(store.path.glob(f"*{layout.TEMPORARY_MARK}*"))
    encoder = RegionEncoder(region_settings(TINY, {}, 96, 384))
    for record, shard in zip(open_dataset(root), manifest.shards, strict=True):
        expected = encoder.encode(decode_bgr(record.image_bytes()).bgr, record.boxes)
        assert np.array_equal(store.read(shard), expected)
    refused = subprocess.run(command(root, short_side=64), capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "another backbone or size (long_side, short_side differ)" in " ".join(refused.stderr.split())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_it_with_its_code_and_it_goes_on(shards_of_one, number, code):
    root = shards_of_one
    running = subprocess.Popen(command(root), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not (root / layout.REGIONS / "00001").is_dir() and time.monotonic() < deadline:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    _, said = running.communicate(timeout=120)
    assert running.returncode == code, said
    assert "interrupted: " in said
    assert subprocess.run(command(root), capture_output=True, check=False).returncode == 0


def entry(manifest, name):
    return next((shard for shard in manifest.shards if shard.name == name), manifest.shards[0])


def test_an_actor_writes_the_features_of_its_shard(mined_dataset, tmp_path):
    root = shutil.copytree(mined_dataset, tmp_path / "dataset")
    store, dataset = RegionStore(root), open_dataset(root)
    settings = region_settings(TINY, {}, 96, 384)
    actor = _RegionActor(settings, "cpu")
    store.begin(actor.identity())
    shard = dataset.manifest.shards[1]
    actor.write(root, shard)
    assert [entry.name for entry in store.missing(dataset.manifest)] == ["00000", "00002"]
    records = [record for record in dataset if record.shard == 1]
    expected = [
        RegionEncoder(settings).encode(decode_bgr(record.image_bytes()).bgr, record.boxes)
        for record in records
    ]
    assert np.array_equal(store.read(shard), np.concatenate(expected))


def test_features_that_are_no_numbers_are_refused(mined_dataset, tmp_path):
    root = shutil.copytree(mined_dataset, tmp_path / "dataset")
    actor = _RegionActor(region_settings(TINY, {"model.data_preprocessor.std": [1e-9] * 3}, 96, 384), "cpu")
    RegionStore(root).begin(actor.identity())
    with pytest.raises(AlignDetError, match=r"astronaut\.jpg that are NaN or beyond float16"):
        actor.write(root, open_dataset(root).manifest.shards[0])


@pytest.mark.slow
def test_weights_that_are_not_there_are_named_and_no_memory_is_blamed(mined_dataset, tmp_path):
    root = shutil.copytree(mined_dataset, tmp_path / "dataset")
    config, missing = tmp_path / "config.py", tmp_path / "missing.pth"
    weights = f"dict(_delete_=True, type='Pretrained', checkpoint='{missing}')"
    config.write_text(f"_base_ = {TINY!r}\nmodel = dict(backbone=dict(init_cfg={weights}))\n")
    options = RegionOptions(str(config), (), 96, workers=1)
    with pytest.raises(AlignDetError, match=rf"weights .*{missing}.* could not be read") as caught:
        extract_regions(root, options, lambda done, shards: None)
    assert "memory" not in str(caught.value)


@pytest.mark.slow
def test_workers_find_the_backbone_of_a_configs_own_module(mined_dataset, tmp_path):
    root = shutil.copytree(mined_dataset, tmp_path / "dataset")
    (tmp_path / "of_the_user.py").write_text(
        "from mmdet.models import ResNet\nfrom mmdet.registry import MODELS\n\n\n"
        "@MODELS.register_module()\nclass UsersResNet(ResNet):\n    pass\n"
    )
    (tmp_path / "config.py").write_text(
        f"_base_ = {TINY!r}\ncustom_imports = dict(imports=['of_the_user'])\n"
        "model = dict(backbone=dict(type='UsersResNet'))\n"
    )
    words = [tmp_path / "config.py" if word == TINY else word for word in command(root)]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert not RegionStore(root).missing(open_dataset(root).manifest)


def test_workers_are_told_where_a_dataset_is_whatever_folder_they_are_in(tmp_path, mine_folder, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    root = mine_folder(tmp_path / "in", tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AlignDetError, match=f"{root} holds no image"):
        extract_regions(Path("out"), RegionOptions(TINY, ()), lambda done, shards: None)


def test_a_dataset_without_images_is_refused(tmp_path, mine_folder):
    images = tmp_path / "in"
    images.mkdir()
    (images / "broken.jpg").write_bytes(b"no image")
    root = mine_folder(images, tmp_path / "out")
    with pytest.raises(AlignDetError, match="holds no image"):
        extract_regions(root, RegionOptions(TINY, ()), lambda done, shards: None)
    assert not (root / layout.REGIONS).exists()
