"""Zarr arrays of a stranger: nothing is unpacked that is not as the format has it."""

import json
import os
import shutil

import numcodecs
import numpy as np
import pytest
import zarr

from proposals.dataset import layout
from proposals.dataset.manifest import FileEntry, read_manifest
from proposals.dataset.proposals_reader import ProposalReader
from proposals.dataset.regions import RegionStore
from proposals.errors import AlignDetError


def _describe(root, name, change):
    path = root / layout.CONSOLIDATED / name / "zarr.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    group = root / layout.CONSOLIDATED / "zarr.json"
    group.write_text(
        json.dumps({k: v for k, v in json.loads(group.read_text()).items() if k != "consolidated_metadata"})
    )


def _plain(content, codec):
    content["chunk_grid"]["configuration"]["chunk_shape"] = [4096, *content["shape"][1:]]
    content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, *codec]


def _inner(content):
    return content["codecs"][0]["configuration"]


DESCRIPTIONS = {
    "a_giant_shape": lambda content: content.update(shape=[2**60, 4]),
    "a_giant_chunk": lambda content: _inner(content).update(chunk_shape=[2**40, 4]),
    "a_giant_shard": lambda content: content["chunk_grid"]["configuration"].update(chunk_shape=[2**50, 4]),
    "chunks_of_nothing": lambda content: _inner(content).update(chunk_shape=[0, 4]),
    "chunks_below_zero": lambda content: _inner(content).update(chunk_shape=[-1, 4]),
    "another_type": lambda content: content.update(data_type="float64"),
    "gzip": lambda content: _plain(content, [{"name": "gzip", "configuration": {"level": 5}}]),
    "a_codec_of_numcodecs": lambda content: _plain(content, [{"name": "numcodecs.bz2", "configuration": {}}]),
    "pickle": lambda content: _plain(
        content, [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]
    ),
    "a_codec_nobody_has": lambda content: _plain(content, [{"name": "os.system", "configuration": {}}]),
    "nested_without_end": lambda content: content.update(
        attributes=json.loads('{"a":' * 900 + "1" + "}" * 900)
    ),
    "no_fill": lambda content: content.update(fill_value="NaN" * 10**6),
    "another_version": lambda content: content.update(zarr_format=2),
    "an_extension_that_must_be_understood": lambda content: content.update(novelty={"must_understand": True}),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_an_array_that_describes_itself_otherwise_is_refused(confined, consolidated, reseal, name):
    _describe(consolidated, "boxes", DESCRIPTIONS[name])
    reseal(consolidated)
    outcome = confined.read("zarr", consolidated, megabytes=128)
    assert outcome.kind == ("value" if name.startswith("nested") else "refused"), outcome


def _one_chunk(root, name, data, length):
    """Make an array one unsharded chunk of blosc, of ``data``."""

    def change(content):
        blosc = {
            "name": "blosc",
            "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 1},
        }
        content["chunk_grid"]["configuration"]["chunk_shape"] = length
        content["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, blosc]

    _describe(root, name, change)
    folder = root / layout.CONSOLIDATED / name / "c"
    shutil.rmtree(folder)
    path = folder.joinpath(*["0"] * len(length))
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


def _consolidated_again(root):
    """Name in dataset.json the files that are there now."""

    def change(content):
        paths = sorted(path for path in (root / layout.CONSOLIDATED).rglob("*") if path.is_file())
        content["consolidated"] = [FileEntry.of(root, path).model_dump() for path in paths]

    return change


CHUNKS = {
    "a_bomb": lambda: numcodecs.Blosc("zstd", 5, 0).encode(np.zeros(2**30, np.uint8)),
    "a_header_that_lies": lambda: b"\2\1\x91\4" + (2**31 - 1).to_bytes(4, "little") + bytes(100),
    "a_few_bytes": lambda: b"\2\1",
    "nothing": lambda: b"",
    "noise": lambda: np.random.default_rng(0).bytes(5000),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_that_is_none_is_refused(confined, consolidated, reseal, name):
    _one_chunk(consolidated, "rank", CHUNKS[name](), [4096])
    reseal(consolidated, _consolidated_again(consolidated))
    outcome = confined.read("zarr", consolidated, megabytes=128)
    assert outcome.kind == "refused", outcome
    assert "chunk" in outcome.text


BOXES = {
    "a_box_that_is_no_number": ("boxes", [0, 0, np.nan, 9]),
    "an_infinite_box": ("boxes", [0, 0, np.inf, 9]),
    "a_box_from_right_to_left": ("boxes", [9, 0, 3, 9]),
    "a_box_left_of_the_image": ("boxes", [-4, 0, 3, 9]),
    "a_rank_that_is_no_number": ("rank", np.nan),
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_that_is_none_is_refused(consolidated, reseal, name):
    array, value = BOXES[name]
    zarr.open(consolidated / layout.CONSOLIDATED, mode="r+")[array][1] = value
    reseal(consolidated, _consolidated_again(consolidated))
    for where in (0, slice(None)):
        with pytest.raises(AlignDetError, match="the dataset is damaged"):
            ProposalReader(consolidated, "zarr")[where]


def test_a_chunk_that_was_left_out_does_not_read_as_boxes_of_nothing(consolidated, reseal):
    shutil.rmtree(consolidated / layout.CONSOLIDATED / "boxes" / "c")
    reseal(consolidated, _consolidated_again(consolidated))
    with pytest.raises(AlignDetError, match="hold one that is empty"):
        ProposalReader(consolidated, "zarr")[0]


def test_a_pipe_among_the_chunks_is_not_waited_for(confined, consolidated):
    os.mkfifo(consolidated / layout.CONSOLIDATED / "boxes" / "c" / "9")
    outcome = confined.read("zarr", consolidated, seconds=20)
    assert (outcome.kind, "plain file" in outcome.text) == ("refused", True)


def _regions(root):
    store, manifest = RegionStore(root), read_manifest(root)
    store.begin({"of": "a test"})
    for shard in manifest.shards:
        store.write(shard, np.ones((shard.proposals, 8), np.float16))
    return store.path / "00000" / "zarr.json"


REGIONS = {
    "a_giant_shape": lambda content: content.update(shape=[content["shape"][0], 2**45]),
    "more_rows": lambda content: content.update(shape=[2**45, 8]),
    "another_type": lambda content: content.update(data_type="float64"),
    "gzip": lambda content: content.update(
        codecs=[content["codecs"][0], {"name": "gzip", "configuration": {"level": 1}}]
    ),
}


@pytest.mark.parametrize("name", REGIONS)
def test_features_that_describe_themselves_otherwise_are_refused(confined, copy, name):
    path = _regions(copy)
    assert confined.read("zarr", copy).kind == "value"
    content = json.loads(path.read_text())
    REGIONS[name](content)
    path.write_text(json.dumps(content))
    outcome = confined.read("zarr", copy, megabytes=128)
    assert outcome.kind == "refused", outcome
    assert "regions.zarr/00000" in confined.read("verified", copy).text


def test_a_group_nested_without_end_is_refused(confined, copy):
    path = _regions(copy).parents[1] / "zarr.json"
    path.write_bytes(b'{"attributes":' * 10**5)
    for reader in ("zarr", "verified"):
        assert "regions.zarr" in confined.read(reader, copy).text
