"""Whatever a user gets wrong ends with one of the documented codes and one sentence: never with a traceback."""

import errno
import json
import os
import shutil
import string
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from proposals.cli import main
from proposals.errors import EXIT_CODES
from tests.cli.conftest import TINY

# Capitals are good things, MISSING, EMPTY, GARBAGE ... are not; each is used where its verb wants something good.
MISTAKES = """
show MISSING
show EMPTY
show GARBAGE_JSON
show DATASET --out BELOW_A_FILE/sheet.png
show DATASET --out FRESH/sheet.png
show DATASET --out FRESH.xyz
show DATASET --out EMPTY
show DATASET --out s3://bucket/sheet.png
show BEGUN
show TRUNCATED
show s3://
show ftp://host/folder
stats MISSING
stats EMPTY
stats GARBAGE_JSON
stats TRUNCATED
stats BEGUN
stats NEWER
recall MISSING --gt ANNOTATIONS
recall DATASET --gt MISSING
recall DATASET --gt EMPTY
recall DATASET --gt GARBAGE_JSON
recall DATASET --gt LIST_JSON
recall DATASET --gt NO_BOXES
report DATASET -o FRESH.html --gt NO_BOXES
split NO_BOXES FRESH
recall DATASET --gt NO_CATEGORIES
recall DATASET --gt IMAGE
recall DATASET --gt ANNOTATIONS --compare EMPTY
report MISSING
report EMPTY
report DATASET -o BELOW_A_FILE/page.html
report DATASET -o EMPTY
report DATASET -o s3://bucket/page.html
report DATASET -o ANNOTATIONS --gt ANNOTATIONS
report DATASET -o FRESH.html --gt GARBAGE_JSON
convert MISSING FRESH.json --to coco
convert EMPTY FRESH.json --to coco
convert GARBAGE_JSON FRESH.json --to soco
convert LIST_JSON FRESH.json --to soco
convert LIST_JSON FRESH.json --from soco --to coco
convert IMAGE FRESH.json --to coco
convert DATASET BELOW_A_FILE/boxes.json --to coco
convert DATASET EMPTY --to coco
convert DATASET . --to coco
convert ANNOTATIONS ANNOTATIONS --to soco
convert DATASET ANNOTATIONS --to coco --ids ANNOTATIONS
convert DATASET s3://bucket/hub --to huggingface
convert DATASET https://host/boxes.json --to coco
convert DATASET FRESH.json --to coco --ids GARBAGE_JSON
convert DATASET FRESH.pkl --to mmdet --folder x --ids MISSING
convert DATASET FRESH --to dataset
convert GARBAGE_JSON FRESH --to dataset --images PHOTOS
convert GARBAGE_PTH FRESH.json --from mmdet --to coco
convert GARBAGE_PTH FRESH.json --from mmdet --to coco --allow-pickle
convert GARBAGE_PTH FRESH.json --from detectron2 --to coco --allow-pickle
convert DATASET GARBAGE_JSON --to huggingface
convert DATASET BELOW_A_FILE --to huggingface
convert DATASET FRESH.json --to nonsense
consolidate MISSING
consolidate EMPTY
consolidate GARBAGE_JSON
consolidate TRUNCATED
merge DATASET EMPTY -o FRESH
merge DATASET MISSING -o FRESH
merge DATASET DATASET -o FRESH
merge DATASET -o GARBAGE_JSON
merge DATASET -o BELOW_A_FILE/merged
mine MISSING FRESH
mine EMPTY FRESH
mine GARBAGE_JSON FRESH
mine IMAGE FRESH
mine PHOTOS GARBAGE_JSON
mine PHOTOS BELOW_A_FILE/out
mine PHOTOS FRESH --filter nonsense
mine PHOTOS FRESH --source-kind parquet
mine PHOTOS FRESH --source-kind coco
mine GARBAGE_JSON FRESH --source-kind coco
mine GARBAGE_JSON FRESH --source-kind parquet
mine GARBAGE_JSON FRESH --source-kind arrow
mine GARBAGE_JSON FRESH --source-kind list
mine LIST_JSON FRESH --source-kind coco
mine PHOTOS FRESH --glob *.nothing
mine PHOTOS FRESH --address nowhere:1
mine PHOTOS FRESH --retry-rejected
mine PHOTOS DATASET --max-side 300
mine PHOTOS FRESH --workers 0
mine PHOTOS FRESH --image-memory inf
mine PHOTOS memory://b/out
mine PHOTOS FRESH --mode nonsense
mine pipe:ls FRESH
mine file:///etc FRESH
mine http://[img]/list.txt FRESH
mine TABLE.parquet FRESH --image-column nonsense
mine PHOTOS s3://[img]/out
verify MISSING
verify EMPTY
verify GARBAGE_JSON
verify TRUNCATED
verify NEWER
status MISSING
status EMPTY
status GARBAGE_JSON
regions MISSING --backbone TINY
regions DATASET --backbone TINY --backbone-weights MISSING
regions DATASET --backbone TINY --backbone-weights GARBAGE_PTH
regions EMPTY --backbone TINY
regions DATASET --backbone nonsense
regions DATASET --backbone MISSING.py
regions DATASET --backbone GARBAGE.py
regions DATASET --backbone GARBAGE_JSON
regions DATASET --backbone GARBAGE.py --no-python-config
cluster MISSING
cluster EMPTY
cluster DATASET
cluster DATASET --report BELOW_A_FILE/x.png
pretrain --data MISSING --work-dir FRESH --config TINY
pretrain --data EMPTY --work-dir FRESH --config TINY
pretrain --data GARBAGE_JSON --work-dir FRESH --config TINY
pretrain --data DATASET --work-dir BELOW_A_FILE/w --config TINY
pretrain --data DATASET --work-dir GARBAGE_JSON --config TINY
pretrain --data DATASET --work-dir DATASET/w --config TINY
export CHECKPOINT DATASET/model.pth
split ANNOTATIONS DATASET/subsets
regions s3://bucket/dataset --backbone fcos_lite0
cluster s3://bucket/dataset
pretrain --data DATASET --work-dir FRESH --config MISSING
pretrain --data DATASET --work-dir FRESH --config EMPTY
pretrain --data DATASET --work-dir FRESH --config GARBAGE.py
pretrain --data DATASET --work-dir FRESH --config GARBAGE_JSON
pretrain --data DATASET --work-dir FRESH --config IMAGE
pretrain --data DATASET --work-dir FRESH --config RAISES.py
pretrain --data DATASET --work-dir FRESH --config LIST_JSON
pretrain --data DATASET --work-dir FRESH --config ANNOTATIONS
pretrain --data DATASET --work-dir FRESH --config TINY --no-python-config
pretrain --data DATASET --work-dir FRESH --detector nonsense
pretrain --data DATASET --work-dir FRESH
pretrain --data DATASET --work-dir FRESH --config TINY --backbone-weights MISSING
pretrain --data DATASET --work-dir FRESH --config TINY --backbone-weights GARBAGE_PTH
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options nonsense
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options pretrain.nonsense=1
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options model.nonsense=1
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options temperature=1
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options pretrain=5
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options model=None
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options pretrain.views.enhance_range=(-1,1)
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options model.data_preprocessor.pad_size_divisor=0
pretrain --data DATASET --work-dir FRESH --config TINY --seed 4294967296
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options model.backbone.type=Nonsense
pretrain --data DATASET --work-dir FRESH --config TINY --cfg-options model.type.x=1
pretrain --data DATASET --work-dir FRESH --config TINY --launcher nonsense
export MISSING FRESH.pth
export EMPTY FRESH.pth
export GARBAGE_PTH FRESH.pth
export TENSORS_PTH FRESH.pth
export CHECKPOINT FRESH.onnx
export CHECKPOINT BELOW_A_FILE/x.pth
export CHECKPOINT EMPTY
export CHECKPOINT FRESH.pth --to torchvision
export CHECKPOINT FRESH --to transformers
export CHECKPOINT FRESH.pth --import-module nonsense_module
pretrain-backbone --data MISSING --work-dir FRESH
pretrain-backbone --data EMPTY --work-dir FRESH
pretrain-backbone --data DATASET --work-dir BELOW_A_FILE/w --backbone resnet18
pretrain-backbone --data DATASET --work-dir FRESH --backbone nonsense
pretrain-backbone --data DATASET --work-dir FRESH --backbone timm:nonsense
pretrain-backbone --data DATASET --work-dir FRESH --backbone MISSING.py
pretrain-backbone --data DATASET --work-dir FRESH --backbone GARBAGE.py
pretrain-backbone --data DATASET --work-dir FRESH --method nonsense
pretrain-backbone --data DATASET --work-dir FRESH --crops nonsense
pretrain-backbone --data DATASET --work-dir FRESH --knn MISSING
pretrain-backbone --data DATASET --work-dir FRESH --knn EMPTY
pretrain-backbone --data DATASET --work-dir FRESH --knn GARBAGE_JSON
pretrain-backbone --data DATASET --work-dir FRESH --cfg-options nonsense=1
backbone inspect MISSING
backbone inspect EMPTY
backbone inspect GARBAGE_PTH
backbone inspect GARBAGE_JSON
backbone nonsense
finetune --config TINY --train MISSING --work-dir FRESH
finetune --config TINY --train EMPTY --work-dir FRESH
finetune --config TINY --train GARBAGE_JSON --work-dir FRESH
finetune --config TINY --train LIST_JSON --work-dir FRESH
finetune --config TINY --train MISSING.txt --work-dir FRESH
finetune --config TINY --train ANNOTATIONS --work-dir BELOW_A_FILE/w
finetune --config TINY --train ANNOTATIONS --work-dir GARBAGE_JSON
finetune --config TINY --train ANNOTATIONS --train-images EMPTY --work-dir FRESH
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --weights MISSING
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --weights GARBAGE_PTH
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --image-size nonsense
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --cfg-options model.type=Nonsense
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --launcher nonsense
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --cfg-options train_cfg.max_epochs=abc
finetune --config GARBAGE.py --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH
finetune --train ANNOTATIONS --work-dir FRESH
finetune --config TINY --train ANNOTATIONS --work-dir FRESH --no-python-config
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir FRESH --weights MISSING
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir GARBAGE_JSON --weights CHECKPOINT
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir BELOW_A_FILE/w --weights CHECKPOINT
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir FRESH --weights GARBAGE_PTH
evaluate --config TINY --val MISSING --work-dir FRESH --weights TENSORS_PTH
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir BELOW_A_FILE/w --weights TENSORS_PTH
split MISSING FRESH
split EMPTY FRESH
split GARBAGE_JSON FRESH
split LIST_JSON FRESH
split IMAGE FRESH
split ANNOTATIONS BELOW_A_FILE/x
split ANNOTATIONS GARBAGE_JSON
split ANNOTATIONS FRESH --percent 0
split ANNOTATIONS FRESH --percent 1 5 10
split ANNOTATIONS FRESH --percent 200
split ANNOTATIONS FRESH --percent nan
split ANNOTATIONS FRESH --percent five
split ANNOTATIONS FRESH --percent 1,,5
split MISSING.txt FRESH
nonsense
show
""".strip().splitlines()
# Those for which a detector is built.
LONG_MISTAKES = """
pretrain --data DATASET --work-dir FRESH --config TINY --workers 0 --cfg-options model.neck.in_channels=(8,16,8,8)
pretrain --data DATASET --work-dir FRESH --config TINY --workers 0 --cfg-options model.neck.num_outs=3
pretrain --data DATASET --work-dir FRESH --config TINY --workers 0 --cfg-options model.bbox_head.in_channels=8
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --weights TENSORS_PTH
finetune --config TINY --train ANNOTATIONS --train-images PHOTOS --work-dir FRESH --weights CHECKPOINT
evaluate --config TINY --val ANNOTATIONS --val-images PHOTOS --work-dir FRESH --weights TENSORS_PTH
""".strip().splitlines()


@pytest.fixture(scope="module")
def things(
    mined_dataset: Path,
    photos: Path,
    annotations: Path,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """What the capitals of MISTAKES stand for."""
    folder = tmp_path_factory.mktemp("things")
    return {
        "DATASET": mined_dataset,
        "PHOTOS": photos,
        "TINY": TINY,
        "MISSING": folder / "no" / "such" / "place",
        **_folders(folder, mined_dataset),
        **_files(folder),
        "ANNOTATIONS": annotations,
        "CHECKPOINT": checkpoint,
    }


def _folders(folder: Path, dataset: Path) -> dict[str, Path]:
    (folder / "empty").mkdir()
    begun, truncated, newer = (folder / name for name in ("begun", "truncated", "newer"))
    for copy in (begun, truncated, newer):
        shutil.copytree(dataset, copy)
    (begun / "dataset.json").unlink()
    text = (dataset / "dataset.json").read_text()
    (truncated / "dataset.json").write_text(text[: len(text) // 2])
    (newer / "dataset.json").write_text(json.dumps(json.loads(text) | {"format_version": "9.0"}))
    return {"EMPTY": folder / "empty", "BEGUN": begun, "TRUNCATED": truncated, "NEWER": newer}


def _files(folder: Path) -> dict[str, Path]:
    noise = np.random.default_rng(0).bytes(2000)
    contents = {
        "GARBAGE_JSON": ("garbage.json", noise),
        "GARBAGE_PTH": ("garbage.pth", noise),
        "GARBAGE.py": ("garbage.py", b"this is { no Python"),
        "RAISES.py": ("raises.py", b"raise RuntimeError('a config that raises')"),
        "LIST_JSON": ("list.json", b"[1, 2, 3]"),
        "NO_BOXES": (
            "no_boxes.json",
            b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [], "categories": []}',
        ),
        "NO_CATEGORIES": (
            "no_categories.json",
            b'{"images": [{"id": 1, "file_name": "a"}], "categories": [],'
            b' "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}]}',
        ),
        "BELOW_A_FILE": ("file", b""),
    }
    for name, content in contents.values():
        (folder / name).write_bytes(content)
    cv2.imwrite(str(folder / "image.png"), np.zeros((30, 40, 3), np.uint8))
    pq.write_table(pa.table({"image": [b"x"]}), folder / "table.parquet")
    torch.save({"weight": torch.zeros(3)}, folder / "tensors.pth")
    found = {key: folder / name for key, (name, _) in contents.items()}
    others = {"IMAGE": "image.png", "TENSORS_PTH": "tensors.pth", "TABLE.parquet": "table.parquet"}
    return found | {key: folder / name for key, name in others.items()}


def _filled(line: str, things: dict[str, Path], fresh: Path) -> list[str]:
    """The words of a command, capitals replaced by paths; a word may go on behind its capitals."""
    words = []
    for word in line.split():
        known = [name for name in (*things, "FRESH") if word.startswith(name)]
        name = max(known, key=len, default="")
        words.append(str(things.get(name, fresh)) + word[len(name) :] if name else word)
    return words


@pytest.mark.parametrize(
    "line", [*MISTAKES, *(pytest.param(x, marks=pytest.mark.slow) for x in LONG_MISTAKES)]
)
def test_a_mistake_gets_a_sentence_and_a_documented_code(line, things, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["aligndet", *_filled(line, things, tmp_path / "fresh")])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr()
    assert ended.value.code in EXIT_CODES, said.err
    assert ended.value.code not in (0, 70), said.err
    assert "Traceback" not in said.out + said.err
    if ended.value.code != 2:
        sentence = said.err[said.err.rindex("error: ") :] if "error: " in said.err else said.out
        assert any(letter in string.punctuation for letter in sentence)
        assert len(sentence) > 25


def test_a_name_that_no_dataset_can_keep_is_refused_before_anything_is_done(
    photos, tmp_path, monkeypatch, capfd
):
    pictures, out = os.fsdecode(bytes(tmp_path) + b"/caf\xe9"), tmp_path / "out"
    shutil.copytree(photos, pictures)
    monkeypatch.setattr(sys, "argv", ["aligndet", "mine", pictures, str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "caf\\udce9' is not UTF-8" in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("fault", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN])
def test_a_disk_or_a_mount_that_fails_is_no_fault_of_this_program(
    fault, mined_dataset, tmp_path, monkeypatch, capfd
):
    real, out = os.mkdir, tmp_path / "out"

    def failing(path, *args, **options):
        if Path(path).is_relative_to(out):
            raise OSError(fault, os.strerror(fault), str(path))
        real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", failing)
    monkeypatch.setattr(sys, "argv", ["aligndet", "merge", str(mined_dataset), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capfd.readouterr().err
    assert ended.value.code == 1, said
    assert f"{os.strerror(fault)}. See to the disk or mount" in said
    assert str(out) in said


@pytest.mark.parametrize("name", ["\x1b[2J", "\x1b]0;title\x07", "\u202etxt", "tab\t"])
def test_a_name_in_a_message_cannot_steer_the_terminal(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["aligndet", "show", str(tmp_path / name)])
    with pytest.raises(SystemExit):
        main()
    said = capfd.readouterr().err
    assert repr(name)[1:-1] in said
    assert name not in said
