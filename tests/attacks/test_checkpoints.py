"""Weights and checkpoints that hold code, bombs or lies: no payload runs, whatever the extension and the verb."""

import json
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from aligndet_train.backbones.files import read_file
from proposals.errors import AlignDetError

_EXTENSIONS = ("pth", "pt", "bin", "ckpt", "safetensors", "npz", "npy", "pkl", "tar", "onnx", "")
_READERS = ("checkpoint", "weights", "exported")


class _Payload:
    def __init__(self, marker):
        self._marker = marker

    def __reduce__(self):
        return exec, (f"open({str(self._marker)!r}, 'w').close()",)


def _raw(path, content):
    path.write_bytes(pickle.dumps(content))


def _legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("extension", _EXTENSIONS)
@pytest.mark.parametrize("save", [_raw, _legacy, lambda path, content: torch.save(content, path)])
def test_pickled_code_is_refused_and_does_not_run(confined, tmp_path, extension, save):
    marker, path = tmp_path / "it_ran", tmp_path / f"weights.{extension}".rstrip(".")
    save(path, {"format": 1, "state_dict": {"a": torch.zeros(3)}, "model": _Payload(marker)})
    for reader in _READERS:
        assert confined.read(reader, path).kind == "refused"
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><title>404</title>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        b"\xff\xd8\xff\xe0 a picture",
        b"",
    ],
)
def test_what_is_no_weights_file_is_not_called_code(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(AlignDetError, match="is not a weights file: it begins like none"):
        read_file(tmp_path / "w.pth")


def test_the_payload_works():
    # Or the tests above would prove nothing.
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        marker = Path(folder) / "it_ran"
        pickle.loads(pickle.dumps(_Payload(marker)))
        assert marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "WEIGHTS", "OUT.safetensors"],
        ["backbone", "inspect", "WEIGHTS"],
        ["pretrain", "--detector", "fcos_lite0", "--data", "DATA", "--work-dir", "WORK"],
        [
            "pretrain",
            "--detector",
            "faster_rcnn",
            "--data",
            "DATA",
            "--work-dir",
            "OTHER",
            "--backbone-weights",
            "WEIGHTS",
        ],
    ],
)
def test_no_verb_runs_it(mined_dataset, tmp_path, arguments):
    marker, weights = tmp_path / "it_ran", tmp_path / "weights.pth"
    torch.save({"format": 1, "model": _Payload(marker)}, weights)
    (tmp_path / "WORK").mkdir()
    (tmp_path / "WORK" / "last.pth").write_bytes(weights.read_bytes())
    names = {"WEIGHTS": weights, "DATA": mined_dataset}
    command = [sys.executable, "-c", "from proposals.cli import main; main()"]
    command += [str(names.get(word, word)) for word in arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "pickled" in done.stdout + done.stderr
    assert not marker.exists()


def _safetensors(header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


def _tensor(shape, first, last, kind="F32"):
    return {"dtype": kind, "shape": shape, "data_offsets": [first, last]}


SAFETENSORS = {
    "a_giant_header": struct.pack("<Q", 2**60) + b"{}",
    "a_header_beyond_the_file": struct.pack("<Q", 10**6) + b"{}",
    "overlapping_tensors": _safetensors({"a": _tensor([2], 0, 8), "b": _tensor([2], 4, 12)}, bytes(12)),
    "a_giant_tensor": _safetensors({"a": _tensor([2**40, 2**40], 0, 8)}, bytes(8)),
    "offsets_below_zero": _safetensors({"a": _tensor([2], -8, 0)}, bytes(8)),
    "offsets_beyond_the_file": _safetensors({"a": _tensor([2], 8, 16)}, bytes(8)),
    "a_type_nobody_has": _safetensors({"a": _tensor([2], 0, 8, "F99")}, bytes(8)),
    "nested_without_end": _safetensors(b"[" * 10**5),
    "one_name_twice": _safetensors(
        b'{"a":%s,"a":%s}' % ((json.dumps(_tensor([2], 0, 8)).encode(),) * 2), bytes(16)
    ),
    "nothing": b"",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_hostile_safetensors_are_refused(confined, tmp_path, name):
    path = tmp_path / "a.safetensors"
    path.write_bytes(SAFETENSORS[name])
    outcome = confined.read("weights", path, megabytes=128)
    assert outcome.kind == "refused", outcome


def test_a_zip_that_unpacks_to_gigabytes_is_refused(confined, tmp_path):
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    torch.save({"format": 1, "state_dict": {"a": torch.zeros(75 * 2**20)}}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert bomb.stat().st_size < 2**20
    for reader in ("checkpoint", "weights"):
        outcome = confined.read(reader, bomb, megabytes=128)
        assert outcome.kind == "refused", outcome


_ONE = torch.zeros(1)
_GOOD = {"format": 1, "step": 1, "stream": [0, 0, 1], "identity": "{}", "model": {"a": _ONE}, "optimizer": {}}
CONTENTS = {
    "a_tensor_of_terabytes": {**_GOOD, "model": {"a": _ONE.expand(2**40)}},
    "a_sparse_tensor": {**_GOOD, "model": {"a": torch.eye(3).to_sparse()}},
    "an_identity_without_end": {**_GOOD, "identity": "[" * 10**5},
    "an_identity_that_is_a_list": {**_GOOD, "identity": "[1]"},
    "an_identity_that_is_a_number": {**_GOOD, "identity": 5},
    "a_tuple_of_a_number": {**_GOOD, "identity": '{"a": {"(tuple)": 5}}'},
    "a_model_that_is_a_number": {**_GOOD, "model": 5},
    "a_model_of_numbers": {**_GOOD, "model": {"a": 5}},
    "a_step_that_is_a_word": {**_GOOD, "step": "x"},
    "a_place_below_zero": {**_GOOD, "stream": [0, 0, -1]},
    "a_format_alone": {"format": 1},
    "another_format": {**_GOOD, "format": 2},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_checkpoint_that_lies_is_refused(confined, tmp_path, name):
    torch.save(CONTENTS[name], tmp_path / "last.pth")
    for reader in ("checkpoint", "exported"):
        outcome = confined.read(reader, tmp_path / "last.pth", megabytes=128)
        assert outcome.kind == "refused", outcome


LAYOUTS = {
    "ours_without_meta": {"aligndet_backbone": 1, "state_dict": {"a": _ONE}},
    "ours_with_a_list": {"aligndet_backbone": 1, "state_dict": {"a": _ONE}, "meta": "[1]"},
    "ours_with_nothing": {"aligndet_backbone": 1, "state_dict": {"a": _ONE}, "meta": "{}"},
    "an_identity_that_is_none": {"identity": "{", "state_dict": {"a": _ONE}},
    "a_vit_of_registers_alone": {"blocks.0.attn.qkv.weight": _ONE, "register_tokens": _ONE},
    "a_mobilenet_of_99_layers": {"features.2.conv.0.0.weight": _ONE, "features.99.conv.x": _ONE},
    "a_swin_without_stages": {"features.1.0.attn.qkv.weight": _ONE, "features.x": _ONE},
    "a_resnet_of_one_number": {"layer1.0.conv2.weight": torch.zeros(())},
}


def test_a_dictionary_that_holds_itself_is_refused(confined, tmp_path):
    content: dict = {}
    content["model"] = {"state_dict": content}
    torch.save(content, tmp_path / "a.pth")
    outcome = confined.read("weights", tmp_path / "a.pth", megabytes=128)
    assert outcome.kind == "refused", outcome


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_with_the_names_of_a_backbone_alone_is_no_crash(confined, tmp_path, name):
    torch.save(LAYOUTS[name], tmp_path / "a.pth")
    outcome = confined.read("weights", tmp_path / "a.pth", megabytes=128)
    assert outcome.kind in ("refused", "value"), outcome


def _call(marker):
    return {"type": "subprocess.Popen", "args": ["touch", str(marker)]}


CONFIGS = {
    "a_function_as_backbone": lambda call: {"backbone": call},
    "a_function_as_the_detector": lambda call: call,
    "a_function_deep_inside": lambda call: {
        "backbone": {"type": "ResNet", "depth": 50, "norm_cfg": [{"a": call}]}
    },
    "a_scope_of_its_own": lambda call: {"backbone": {**call, "type": "Popen", "_scope_": "subprocess"}},
    "a_python_file": lambda call: {"backbone": {"type": "LAD", "teacher_config": "./evil.py"}},
    "a_name_inside_mmengine": lambda call: {"backbone": {"type": "mmengine.Config"}},
    "a_type_that_is_a_number": lambda call: {"type": 5},
    "nothing": lambda call: {},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoints_config_calls_nothing(confined, tmp_path, name):
    marker = tmp_path / "it_ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()")
    model = {"type": "FCOS", "bbox_head": {"type": "FCOSHead"}} | CONFIGS[name](_call(marker))
    identity = {"config": "fcos", "stock_model": model if name != "nothing" else {}}
    torch.save({**_GOOD, "identity": json.dumps(identity)}, tmp_path / "last.pth")
    outcome = confined.read("exported", tmp_path / "last.pth", megabytes=512)
    assert outcome.kind == "refused", outcome
    assert not marker.exists()


def test_without_the_check_such_a_config_runs_its_function(tmp_path):
    from aligndet_train.box_domain import build_detector

    marker = tmp_path / "it_ran"
    build_detector(_call(marker)).wait()
    assert marker.exists()
