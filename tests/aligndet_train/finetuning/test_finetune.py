"""Fine-tuning a tiny stock detector on real photographs, with mined boxes of two made-up classes as labels."""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from safetensors.torch import load_file
from typer.testing import CliRunner

from aligndet_train.backbones.ours import write_backbone
from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.checkpoint import save_checkpoint
from aligndet_train.config import load_run_config, read_config
from aligndet_train.export import export, exported_state
from aligndet_train.finetuning.engine import new_runner
from aligndet_train.finetuning.labels import Labels, read_labels
from aligndet_train.finetuning.loading import LoadWeightsHook, load_into
from aligndet_train.finetuning.nonfinite import image_paths
from aligndet_train.finetuning.recipe import FinetuneOptions, finetune_config
from aligndet_train.memory_order import ChannelsLastHook
from aligndet_train.work_folder import alone_in
from proposals.cli import build_app
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError
from tests.aligndet_train.cuda_refusals import RefusalsOfCuda
from tests.aligndet_train.forked import Command, finish, finish_all, wait_for
from tests.aligndet_train.ranks import in_two_ranks

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def labels(mined_dataset: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Labels:
    """The three best boxes of every photograph."""
    content: dict[str, list] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }
    for number, record in enumerate(open_dataset(mined_dataset)):
        size = {"width": record.width, "height": record.height}
        content["images"].append({"id": number, "file_name": record.uri, **size})
        for place, (x1, y1, x2, y2) in enumerate(record.boxes[:3].tolist()):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            name = {
                "id": len(content["annotations"]) + 1,
                "image_id": number,
                "category_id": (3, 7)[place % 2],
            }
            content["annotations"].append(name | box)
    path = tmp_path_factory.mktemp("labels") / "train.json"
    path.write_text(json.dumps(content))
    return read_labels(path, photos, path.parent)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a pretraining run that has not begun."""
    folder = tmp_path_factory.mktemp("exported")
    export(begun(folder), folder / "model.safetensors")
    return folder / "model.safetensors"


def begun(folder: Path) -> Path:
    """The checkpoint of a pretraining run that has done nothing yet."""
    run = load_run_config(CONFIGS / "tiny_fcos.py", {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return save_checkpoint(folder, model, optimizer, 1, {"config": run.name, "stock_model": run.stock_model})


def invoke(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(), [str(argument) for argument in arguments])
    return result.exit_code, result.output + (str(result.exception) if result.exception else "")


def test_a_run_in_nhwc_order_goes_on_without_it_and_its_checkpoints_are_usual(labels, tmp_path, monkeypatch):
    orders = []

    def look(hook, runner):
        weight = runner.model.neck.lateral_convs[0].conv.weight
        orders.append(weight.is_contiguous(memory_format=torch.channels_last))

    monkeypatch.setattr(ChannelsLastHook, "after_train", look)
    train = ("--train", labels.annotations, "--train-images", labels.images, "--image-size", "96x64")
    place = ("--work-dir", tmp_path / "F", "--workers", 0, "--batch-size", 4, "--lr", 0.01, "--epochs", 2)
    command = ("finetune", "--config", CONFIGS / "tiny_fcos.py", *train, *place)
    code, output = invoke(*command, "--channels-last")
    assert code == 0, output
    assert orders == [True]
    saved = torch.load(tmp_path / "F" / "epoch_1.pth", weights_only=True)["state_dict"]
    assert all(value.is_contiguous() for value in saved.values())
    (tmp_path / "F" / "last_checkpoint").write_text(str(tmp_path / "F" / "epoch_1.pth"))
    (tmp_path / "F" / "epoch_2.pth").unlink()
    code, output = invoke(*command)
    assert code == 0, output


def test_it_trains_measures_resumes_and_its_checkpoint_evaluates(labels, exported, tmp_path):
    common = ("--config", CONFIGS / "tiny_fcos.py", "--image-size", "128x96", "--workers", 0)
    train = ("--train", labels.annotations, "--train-images", labels.images, "--weights", exported)
    val = ("--val", labels.annotations, "--val-images", labels.images)
    rest = ("--work-dir", tmp_path / "F", "--batch-size", 4, "--lr", 0.01)
    command = ("finetune", *common, *train, *val, *rest)
    code, output = invoke(*command, "--epochs", 2)
    assert code == 0, output
    results = json.loads((tmp_path / "F" / "results.json").read_text())
    assert [figures["epoch"] for figures in results["epochs"]] == [1, 2]
    assert results["run"]["lr"] == 0.01
    refused = invoke(*command, "--epochs", 3)
    assert refused[0] != 0
    assert "options.epochs: 2 -> 3" in refused[1]
    (tmp_path / "F" / "last_checkpoint").write_text(str(tmp_path / "F" / "epoch_1.pth"))
    (tmp_path / "F" / "epoch_2.pth").unlink()
    code, output = invoke(*command, "--epochs", 2)
    assert code == 0, output
    again = json.loads((tmp_path / "F" / "results.json").read_text())
    assert [figures["epoch"] for figures in again["epochs"]] == [1, 2]
    assert again["epochs"][0] == results["epochs"][0]
    killed_before_the_figures = {**again, "epochs": again["epochs"][:1]}
    (tmp_path / "F" / "results.json").write_text(json.dumps(killed_before_the_figures))
    code, output = invoke(*command, "--epochs", 2)
    assert code == 0, output
    assert json.loads((tmp_path / "F" / "results.json").read_text())["epochs"] == again["epochs"]
    (tmp_path / "F" / "last_checkpoint").write_text("")  # a kill while mmengine wrote it
    written = (tmp_path / "F" / "epoch_2.pth").stat().st_mtime_ns
    code, output = invoke(*command, "--epochs", 2)
    assert code == 0, output
    assert (tmp_path / "F" / "epoch_2.pth").stat().st_mtime_ns == written, "nothing was left to train"
    assert json.loads((tmp_path / "F" / "results.json").read_text()) == again
    killed_before_any_figures = tmp_path / "F" / "results.json"
    killed_before_any_figures.unlink()
    (tmp_path / "F" / "last_checkpoint").write_text(str(tmp_path / "F" / "epoch_1.pth"))
    (tmp_path / "F" / "epoch_2.pth").unlink()
    code, output = invoke(*command, "--epochs", 2)
    assert code == 0, output
    assert json.loads((tmp_path / "F" / "results.json").read_text())["epochs"] == again["epochs"]
    other_labels = tmp_path / labels.annotations.name
    other_labels.write_text(labels.annotations.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    refused = invoke(
        *(other_labels if word == labels.annotations else word for word in command), "--epochs", 2
    )
    assert "train.sha256" in refused[1]
    refused = invoke(*command, "--epochs", 2, "--cfg-options", "model.bbox_head.loss_bbox.loss_weight=2.0")
    assert "settings:" in refused[1]
    elsewhere = {tmp_path / "F": tmp_path / "G"}
    for file in (exported, labels.annotations):
        elsewhere[file] = tmp_path / f"moved{file.suffix}"
        shutil.copy(file, elsewhere[file])
    moved = tuple(elsewhere.get(word, word) for word in command)
    shutil.copytree(tmp_path / "F", tmp_path / "G")
    (tmp_path / "G" / "last_checkpoint").write_text("/where/it/was/epoch_2.pth")
    code, output = invoke(*moved, "--epochs", 2)
    assert code == 0, output
    (tmp_path / "G" / "epoch_2.pth").unlink()
    assert "which is gone" in invoke(*moved, "--epochs", 2)[1]
    weights = ("--weights", tmp_path / "F" / "epoch_2.pth", "--work-dir", tmp_path / "E")
    code, output = invoke("evaluate", *common, *val, *weights)
    assert code == 0, output
    measured = json.loads((tmp_path / "E" / "results.json").read_text())["last"]
    assert measured | {"epoch": 2} == again["last"]
    classes = json.loads((tmp_path / "E" / "results.json").read_text())["classes"]
    assert [one["name"] for one in classes] == ["a", "b"]
    assert classes == again["classes"]
    for one in classes:
        assert re.search(rf"{one['name']} +│ +{one['boxes']} │ +{one['AP']:.1f} ", output), output
    assert "warning:" not in output
    other_size = invoke("evaluate", *common, *val, *weights, "--image-size", "64x48")
    assert "epoch_2.pth was fine-tuned with --image-size 128x96" in other_size[1]
    whole = (tmp_path / "F" / "epoch_2.pth").read_bytes()
    (tmp_path / "F" / "epoch_2.pth").write_bytes(whole[: len(whole) // 2])
    refused = invoke(*command, "--epochs", 2)
    assert refused[0] == 1, refused[1]
    assert "epoch_2.pth is not a weights file" in refused[1]
    assert "write epoch_1.pth into" in refused[1]
    (tmp_path / "F" / "epoch_1.pth").unlink()
    assert "Choose a new --work-dir" in invoke(*command, "--epochs", 2)[1]
    (tmp_path / "F" / "epoch_2.pth").write_bytes(whole)
    checkpoint = torch.load(tmp_path / "F" / "epoch_2.pth", weights_only=False)
    meta = checkpoint["meta"]
    meta["CLASSES"] = tuple(reversed(meta.pop("dataset_meta")["classes"]))
    torch.save(checkpoint, tmp_path / "of_mmdet_2.pth")
    weights = ("--weights", tmp_path / "of_mmdet_2.pth", "--work-dir", tmp_path / "E3")
    code, output = invoke("evaluate", *common, *val, *weights)
    assert code == 0, output
    (numbered,) = (tmp_path / "E3" / "labels").glob("*.json")
    assert [entry["name"] for entry in json.loads(numbered.read_text())["categories"]] == ["b", "a"]
    assert "does not say its classes" not in output
    del meta["CLASSES"]
    torch.save(checkpoint, tmp_path / "of_nobody.pth")
    weights = ("--weights", tmp_path / "of_nobody.pth", "--work-dir", tmp_path / "E4")
    code, output = invoke("evaluate", *common, *val, *weights)
    assert "of_nobody.pth does not say its classes: taken to be a, b" in output
    assert json.loads((tmp_path / "E4" / "results.json").read_text())["last"] == measured
    checkpoint["state_dict"]["bbox_head.cls_convs.9.conv.weight"] = torch.zeros(2)
    torch.save(checkpoint, tmp_path / "of_a_deeper_head.pth")
    weights = ("--weights", tmp_path / "of_a_deeper_head.pth", "--work-dir", tmp_path / "E2")
    assert "holds 1 tensors that the detector does not have" in invoke("evaluate", *common, *val, *weights)[1]


def test_weights_of_another_config_are_loaded_where_they_fit_and_named_where_they_do_not(exported, caplog):
    state = {**load_file(exported), "bbox_head.cls_convs.9.conv.weight": torch.zeros(2)}
    state["bbox_head.conv_cls.bias"] = torch.zeros(3)  # of other classes: nothing to warn of
    model = build_detector(read_config(CONFIGS / "tiny_fcos.py", {}).model.to_dict())
    logger = logging.getLogger("loading")
    with caplog.at_level(logging.INFO, "loading"):
        LoadWeightsHook(state).before_train(SimpleNamespace(iter=0, model=model, logger=logger))
    told, warned = caplog.records
    assert f"{len(state) - 2} tensors loaded" in told.message
    assert "\n  bbox_head.conv_cls.bias" in told.message
    assert (
        "1 tensors that this detector does not have, bbox_head.cls_convs.9.conv.weight first"
        in warned.message
    )


def test_without_a_set_to_measure_on_the_results_still_say_what_was_run(labels, tmp_path, monkeypatch):
    # mmengine would call it six times in this run, a second each.
    monkeypatch.delattr("mmengine.config.config.FormatCode")
    command = (
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
        labels.images, "--image-size", "128x96", "--workers", 0, "--batch-size", 4, "--epochs", 1,
        "--work-dir", tmp_path,
    )  # fmt: skip
    code, output = invoke(*command)
    assert code == 0, output
    assert re.search(r"lr [\d.e-]+ \(stock .* images.*\), weight decay", output)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["epochs"], results["last"]) == ([], {})
    assert results["run"]["global_batch"] == 4
    (written,) = tmp_path.glob("*.py")
    assert Config.fromfile(written, format_python_code=False).train_dataloader.batch_size == 4


def test_a_run_goes_on_with_its_own_rates_and_global_batch_and_keeps_its_results(labels, tmp_path):
    command = (
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
        labels.images, "--image-size", "64x48", "--workers", 0, "--epochs", 1, "--work-dir", tmp_path,
    )  # fmt: skip
    code, output = invoke(*command, "--batch-size", 4)
    assert code == 0, output
    path = tmp_path / "run.json"
    run = json.loads(path.read_text())
    assert run["global_batch"] == 4
    assert "global_batch: 4 -> 2" in invoke(*command, "--batch-size", 2)[1]
    older = {name: value for name, value in run.items() if name != "global_batch"} | {"lr": 7.0}
    path.write_text(json.dumps(older))
    (tmp_path / "results.json").write_text(json.dumps({"run": {}, "epochs": [{"AP": 1.0}]}))  # of `evaluate`
    assert "options.batch_size: 4 -> 2" in invoke(*command, "--batch-size", 2)[1]
    code, output = invoke(*command, "--batch-size", 4)
    assert code == 0, output
    # What is in the checkpoint goes on, whatever a new run would begin with.
    assert json.loads(path.read_text()) == run | {"lr": 7.0}
    code, output = invoke(
        "evaluate", "--config", CONFIGS / "tiny_fcos.py", "--val", labels.annotations, "--val-images", labels.images,
        "--weights", tmp_path / "epoch_1.pth", "--work-dir", tmp_path,
    )  # fmt: skip
    assert code != 0
    assert "another --work-dir" in output


@pytest.mark.parametrize(
    ("batch", "rate", "message"),
    [
        # Four steps an epoch: the second one's loss is computed with weights of 1e20 and more.
        (2, 1e25, r"step [23]: .*loss\w* is (nan|inf).*\(images .*\.jpg"),
        # One step an epoch, whose own loss is finite.
        (8, 1e38, r"step 1: the update made weights that are not finite"),
    ],
)
def test_what_is_not_a_number_ends_the_run_before_a_checkpoint(batch, rate, message, labels, tmp_path):
    code, output = invoke(
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations,
        "--train-images", labels.images, "--work-dir", tmp_path, "--workers", 0, "--batch-size", batch, "--lr", rate,
        "--epochs", 3, "--image-size", "128x96", "--cfg-options", "model.bbox_head.loss_bbox.loss_weight=1e6",
        "--cfg-options", "optim_wrapper.clip_grad=None",
    )  # fmt: skip
    assert code != 0
    assert re.search(message + r".*new --work-dir with a lower --lr \(now 1e\+", output, re.DOTALL), output
    assert list(tmp_path.glob("*.pth")) == []


def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_name(labels, tmp_path):
    shutil.copytree(labels.images, tmp_path / "photos")
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"no image")
    code, output = invoke(
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
        tmp_path / "photos", "--work-dir", tmp_path / "F", "--epochs", 1, "--image-size", "64x48", "--workers", 1,
    )  # fmt: skip
    assert code != 0
    assert f"{tmp_path}/photos/cat.jpg cannot be decoded" in output


@pytest.mark.parametrize(
    "batch", [None, [], {"inputs": []}, {"data_samples": {"sup": 1}}, {"data_samples": [1]}]
)
def test_batches_that_name_no_image_have_no_image_paths(batch):
    assert image_paths(batch) == []


def test_untrained_parts_are_not_evaluated(labels, exported, tmp_path):
    code, output = invoke(
        "evaluate", "--config", CONFIGS / "tiny_fcos.py", "--val", labels.annotations, "--val-images", labels.images,
        "--weights", exported, "--work-dir", tmp_path, "--workers", 0,
    )  # fmt: skip
    assert code != 0
    assert "untrained" in output
    assert "bbox_head.conv_cls" in output


def test_pretrained_weights_get_the_papers_rates(labels, tmp_path):
    stock = read_config(CONFIGS / "tiny_faster_rcnn.py", {})
    options = FinetuneOptions(epochs=24, batch_size=8)
    usual, plain = finetune_config(stock, labels, None, tmp_path, options, pretrained=False)
    config, ours = finetune_config(stock, labels, None, tmp_path, options, pretrained=True)
    assert plain.lr == pytest.approx(stock.optim_wrapper.optimizer.lr * 8 / 16)
    assert (ours.lr, ours.weight_decay) == (1.5 * plain.lr, 0.5 * plain.weight_decay)
    assert config.optim_wrapper.optimizer.lr == ours.lr
    assert "x 1.5 for pretrained weights" in ours.reason
    milestones = next(s.milestones for s in stock.param_scheduler if "milestones" in s)
    assert next(s.milestones for s in usual.param_scheduler if "milestones" in s) == [
        2 * m for m in milestones
    ]
    assert config.model.roi_head.bbox_head.num_classes == 2
    assert stock.model.roi_head.bbox_head.num_classes == 80


def test_a_backbone_alone_keeps_the_usual_rates(labels, tmp_path):
    stock = read_config(CONFIGS / "tiny_fcos.py", {})
    state = build_detector(stock.model.to_dict()).state_dict()
    torch.save({k: v for k, v in state.items() if k.startswith("backbone.")}, tmp_path / "backbone.pth")
    images = (
        "--train-images",
        labels.images,
        "--image-size",
        "64x48",
        "--workers",
        0,
        "--epochs",
        1,
        "--amp",
    )
    code, output = invoke(
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, *images,
        "--weights", tmp_path / "backbone.pth", "--work-dir", tmp_path / "F",
    )  # fmt: skip
    assert code == 0, output
    run = json.loads((tmp_path / "F" / "run.json").read_text())
    assert run["weight_decay"] == stock.optim_wrapper.optimizer.weight_decay


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_images_are_normalised_as_pretraining_did(name, labels, tmp_path):
    changed = {"model.data_preprocessor.mean": [1.0, 2.0, 3.0], "model.backbone.style": "caffe"}
    run = load_run_config(CONFIGS / "tiny_fcos.py", {}, changed)
    model = build_pretrainer(run.stock_model, run.pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    last = save_checkpoint(
        tmp_path, model, optimizer, 1, {"config": run.name, "stock_model": run.stock_model}
    )
    export(last, tmp_path / name)

    def learned_with(folder: str, *more: str) -> Config:
        code, output = invoke(
            "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
            labels.images, "--image-size", "64x48", "--workers", 0, "--epochs", 1, "--batch-size", 4, "--lr", 0,
            "--weights", tmp_path / name, "--work-dir", tmp_path / folder, *more,
        )  # fmt: skip
        assert code == 0, output
        assert "data_preprocessor.mean=[1.0, 2.0, 3.0]" in re.sub(r"\s+", " ", output)
        return Config.fromfile(tmp_path / folder / "tiny_fcos.py")

    config = learned_with("F")
    assert (config.model.data_preprocessor.mean, config.model.backbone.style) == ([1, 2, 3], "caffe")
    code, output = invoke(
        "evaluate", "--config", CONFIGS / "tiny_fcos.py", "--val", labels.annotations, "--val-images", labels.images,
        "--image-size", "64x48", "--workers", 0, "--weights", tmp_path / "F" / "epoch_1.pth",
        "--work-dir", tmp_path / "E",
    )  # fmt: skip
    assert code == 0, output
    assert "data_preprocessor.mean=[1.0, 2.0, 3.0]" in re.sub(r"\s+", " ", output)
    mine = learned_with("G", "--cfg-options", "model.data_preprocessor.mean=[9.,9.,9.]")
    assert mine.model.data_preprocessor.mean == [9, 9, 9]


@pytest.fixture
def backbone_file(tmp_path: Path) -> Path:
    """What pretrain-backbone leaves, of the tiny FCOS's backbone: its tensors by their bare names."""
    stock = read_config(CONFIGS / "tiny_fcos.py", {})
    torch.manual_seed(7)
    state = build_detector(stock.model.to_dict()).state_dict()
    inputs = {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375), "bgr_to_rgb": True}
    identity = {"method": "simclr", "backbone": dict(stock.model.backbone), "inputs": inputs}
    (tmp_path / "B").mkdir()
    write_backbone({"identity": identity, "step": 7, "model": state}, tmp_path / "B" / "backbone.pth")
    return tmp_path / "B" / "backbone.pth"


def test_it_begins_from_a_backbone_of_pretrain_backbone(labels, exported, backbone_file, tmp_path):
    def run(file: Path, *more: object) -> tuple[int, str]:
        # Nothing moves: what the last checkpoint has is what was loaded.
        return invoke(
            "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
            labels.images, "--image-size", "64x48", "--workers", 0, "--epochs", 1, "--lr", 0, "--weight-decay", 0,
            "--work-dir", tmp_path / "F", "--backbone-weights", file, *more,
        )  # fmt: skip

    code, output = run(backbone_file)
    assert code == 0, output
    assert "model.data_preprocessor.bgr_to_rgb=True" in re.sub(r"\s+", "", output), "as it was trained"
    wanted = torch.load(backbone_file, weights_only=True)["state_dict"]
    saved = torch.load(tmp_path / "F" / "epoch_1.pth", weights_only=False)["state_dict"]
    convolutions = [name for name in wanted if name.endswith("conv1.weight")]
    assert len(convolutions) > 4
    assert all(torch.equal(saved[f"backbone.{name}"], wanted[name]) for name in convolutions)
    moved = backbone_file.rename(tmp_path / "elsewhere.pth")
    assert run(moved, "--quiet") == (0, ""), "the same weights at another place"
    wanted["conv1.weight"] += 1
    torch.save(torch.load(moved, weights_only=True) | {"state_dict": wanted}, moved)
    code, output = run(moved)
    assert code == 1
    assert "backbone_weights.sha256" in output
    code, output = run(moved, "--weights", exported)
    assert "both name the backbone's weights" in output


def test_a_run_begins_with_no_backbone_that_the_configs_weights_do_not_fill(labels, tmp_path):
    def run(weights: Path) -> tuple[int, str]:
        named = f"model.init_cfg={{'type': 'Pretrained', 'checkpoint': '{weights}'}}"
        return invoke(
            "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
            labels.images, "--image-size", "96x64", "--workers", 0, "--batch-size", 4, "--lr", 0.01, "--epochs", 1,
            "--work-dir", tmp_path / weights.stem, "--cfg-options", named,
        )  # fmt: skip

    detector = load_run_config(CONFIGS / "tiny_fcos.py", {}, {}).stock_model
    backbone = build_detector(detector).backbone.state_dict()
    backbone = {f"backbone.{name}": value for name, value in backbone.items()}
    torch.save({f"encoder.{name}": value for name, value in backbone.items()}, tmp_path / "other.pth")
    code, output = run(tmp_path / "other.pth")
    assert code == 1
    assert re.search(r"other\.pth fills 0% of the backbone .*--backbone-weights FILE", output)
    assert not list((tmp_path / "other").glob("epoch_*.pth"))
    left_out = {name: value for name, value in backbone.items() if not name.startswith("backbone.layer1.0.")}
    torch.save(left_out, tmp_path / "most.pth")
    code, output = run(tmp_path / "most.pth")
    assert code == 0, output
    (log,) = (tmp_path / "most").glob("*/*.log")
    assert "6 of its 60 parameters keep their initial values" in log.read_text()


def test_query_detectors_are_fine_tuned_as_cuda_takes_them(labels, tmp_path):
    """DDQ has points, sampling offsets and a loss of probabilities."""
    with RefusalsOfCuda():
        code, output = invoke(
            "finetune", "--config", CONFIGS / "tiny_ddq.py", "--train", labels.annotations, "--train-images",
            labels.images, "--image-size", "128x96", "--workers", 0, "--epochs", 1, "--batch-size", 4, "--amp",
            "--work-dir", tmp_path,
        )  # fmt: skip
    assert code == 0, output


def test_kept_box_regressors_fit_any_number_of_classes():
    run = load_run_config(CONFIGS / "tiny_faster_rcnn.py", {}, {})
    model = build_pretrainer(run.stock_model, run.pretrain)
    checkpoint = {"identity": {"stock_model": run.stock_model}, "model": model.state_dict()}
    exported, _ = exported_state(checkpoint, keep_predictors=True)
    few = load_run_config(
        CONFIGS / "tiny_faster_rcnn.py", {}, {"model.roi_head.bbox_head.num_classes": 3}
    ).stock_model
    detector = build_detector(few)
    report = load_into(detector, exported)
    assert "roi_head.bbox_head.fc_reg.weight" in report.loaded
    assert set(report.left_at_init) == {"roi_head.bbox_head.fc_cls.weight", "roi_head.bbox_head.fc_cls.bias"}
    learned = model.student.roi_head.bbox_head.fc_reg.weight
    assert torch.equal(detector.roi_head.bbox_head.fc_reg.weight, learned.repeat(3, 1))


@pytest.mark.parametrize(
    ("config", "learned", "wanted"), [("tiny_fcos.py", 4, 8), ("tiny_faster_rcnn.py", 3, 7)]
)
def test_a_class_predictor_is_never_loaded_for_other_classes(config, learned, wanted):
    """Four rows look like one regressor's, repeated."""

    def detector(classes: int) -> torch.nn.Module:
        two_stage = "faster" in config
        head = "model.roi_head.bbox_head" if two_stage else "model.bbox_head"
        return build_detector(
            load_run_config(CONFIGS / config, {}, {f"{head}.num_classes": classes}).stock_model
        )

    report = load_into(detector(wanted), detector(learned).state_dict())
    assert [name for name in report.loaded if "_cls.w" in name and "rpn" not in name] == []
    assert any("_cls.weight" in name for name in report.left_at_init)


def test_neck_and_head_begin_alike_wherever_the_backbones_weights_come_from(labels, tmp_path):
    stock = read_config(CONFIGS / "tiny_retinanet.py", {})
    stock.model.backbone = {"type": "ResNet", "depth": 18, "out_indices": (1, 2, 3)}
    stock.model.neck.in_channels = [128, 256, 512]
    torch.save(build_detector(dict(stock.model)).backbone.state_dict(), tmp_path / "b.pth")
    begun = []
    for number, start in enumerate((None, {"type": "Pretrained", "checkpoint": str(tmp_path / "b.pth")})):
        stock.model.backbone.init_cfg = start
        made, _ = finetune_config(
            stock, labels, None, tmp_path / str(number), FinetuneOptions(workers=0), pretrained=True
        )
        with DefaultScope.overwrite_default_scope("mmdet"):
            runner = new_runner(made)
            runner._init_model_weights()
        begun.append(runner.model.state_dict())
    backbone, others = (
        [name for name in begun[0] if name.startswith("backbone.") is there] for there in (True, False)
    )
    assert not all(torch.equal(begun[0][name], begun[1][name]) for name in backbone)
    assert all(torch.equal(begun[0][name], begun[1][name]) for name in others)


def two_ranks(labels: Labels, work_dir: Path, epochs: int) -> list[Command]:
    """Not under torchrun, which ends a rank before it can say what happened."""
    arguments = [
        "finetune", "--config", CONFIGS / "tiny_fcos.py",
        "--train", labels.annotations, "--train-images", labels.images,
        "--val", labels.annotations, "--val-images", labels.images, "--work-dir", work_dir, "--epochs", epochs,
        "--batch-size", 2, "--image-size", "64x48", "--workers", 0,
    ]  # fmt: skip
    return in_two_ranks([str(word) for word in arguments])


@pytest.mark.slow
def test_ranks_count_as_one_batch(labels, tmp_path):
    finish_all(two_ranks(labels, tmp_path, epochs=1))
    assert not Path(".dist_test").exists(), "a folder of mmengine's where the command ran"
    stock = read_config(CONFIGS / "tiny_fcos.py", {})
    run = json.loads((tmp_path / "results.json").read_text())["run"]
    assert run["lr"] == pytest.approx(stock.optim_wrapper.optimizer.lr * 4 / 16)
    alone = (
        "finetune", "--config", CONFIGS / "tiny_fcos.py", "--train", labels.annotations, "--train-images",
        labels.images, "--val", labels.annotations, "--val-images", labels.images, "--work-dir", tmp_path,
        "--epochs", 1, "--image-size", "64x48", "--workers", 0,
    )  # fmt: skip
    assert "global_batch: 4 -> 2" in invoke(*alone, "--batch-size", 2)[1]
    code, output = invoke(*alone, "--batch-size", 4)
    assert code == 0, output


@pytest.mark.slow
def test_a_rank_killed_ends_the_other_with_a_reason_and_the_same_command_goes_on(labels, tmp_path):
    first, second = two_ranks(labels, tmp_path, epochs=8)
    wait_for(tmp_path / "epoch_2.pth", first)
    second.kill()
    output = " ".join(finish(first, expect=1).split())
    assert "rank 0 of 2 lost another rank, whose process or node died" in output
    assert "the same command goes on from there" in output
    done = len(json.loads((tmp_path / "results.json").read_text())["epochs"])
    assert 1 <= done < 8, "killed too late to show anything"
    finish_all(two_ranks(labels, tmp_path, epochs=8))
    epochs = json.loads((tmp_path / "results.json").read_text())["epochs"]
    assert [figures["epoch"] for figures in epochs] == list(range(1, 9))


def test_voc_labels_are_the_same_boxes_as_coco(photos, tmp_path):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    (folder / "astronaut.xml").write_text(
        "<annotation><filename>astronaut.jpg</filename><size><width>200</width><height>200</height></size>"
        "<object><name>person</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>110</xmax><ymax>120</ymax></bndbox>"
        "</object></annotation>"
    )
    labels = read_labels(tmp_path, photos, tmp_path / "scratch")
    (box,) = json.loads(labels.annotations.read_text())["annotations"]
    assert (labels.classes, box["bbox"]) == (("person",), [10.0, 20.0, 100.0, 100.0])


def test_a_missing_image_is_named_before_anything_runs(labels, tmp_path):
    with pytest.raises(AlignDetError, match=r"8 of 8 images .* --train-images"):
        read_labels(labels.annotations, tmp_path, tmp_path)


def test_a_mask_detector_says_what_to_do(labels, tmp_path):
    stock = read_config(
        CONFIGS / "tiny_faster_rcnn.py", {"model.roi_head.mask_head": {"type": "FCNMaskHead"}}
    )
    with pytest.raises(AlignDetError, match="mask_head=None"):
        finetune_config(stock, labels, None, tmp_path, FinetuneOptions(), pretrained=False)


@pytest.mark.parametrize("verb", ["finetune", "evaluate"])
def test_weights_that_hold_code_are_refused(verb, labels, tmp_path, capfd):
    class Payload:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return print, ("ran the payload",)

    torch.save({"state_dict": Payload()}, tmp_path / "bad.pth")
    config = ("--config", CONFIGS / "tiny_fcos.py", "--weights", tmp_path / "bad.pth", "--work-dir", tmp_path)
    which = "train" if verb == "finetune" else "val"
    code, output = invoke(verb, *config, f"--{which}", labels.annotations, f"--{which}-images", labels.images)
    assert code != 0
    assert "pickled code" in output
    assert "ran the payload" not in output + capfd.readouterr().out


def test_what_is_wrong_with_the_labels_is_told(labels, tmp_path):
    content = json.loads(labels.annotations.read_text())
    content["images"].append({**content["images"][0], "id": 99})
    content["annotations"][0]["bbox"][2] = -5
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    both = ("--train", path, "--train-images", labels.images, "--val", path, "--val-images", labels.images)
    code, output = invoke(
        "finetune", "--config", CONFIGS / "tiny_fcos.py", *both, "--work-dir", tmp_path / "F", "--epochs", 1,
        "--image-size", "64x48", "--workers", 0, "--batch-size", 4,
    )  # fmt: skip
    assert code == 0, output
    for sentence in ("training passes over 1 of 24 boxes", "AP is lower", "lists 1 images more than once"):
        assert f"warning: {path}" in output
        assert sentence in output


def test_weights_of_a_detector_that_computes_otherwise_are_named(labels, exported, tmp_path):
    common = ("--config", CONFIGS / "tiny_fcos.py", "--image-size", "64x48", "--workers", 0)
    train = ("--train", labels.annotations, "--train-images", labels.images, "--weights", exported)
    option = ("--cfg-options", "model.bbox_head.norm_on_bbox=True")
    place = ("--work-dir", tmp_path / "F", "--epochs", 1, "--batch-size", 4)
    code, output = invoke("finetune", *common, *train, *place, *option)
    assert code == 0, output
    difference = "bbox_head.norm_on_bbox: "
    assert f"warning: {exported} is of a detector with other settings" in output
    assert difference in output
    weights = ("--weights", tmp_path / "F" / "epoch_1.pth")
    val = ("--val", labels.annotations, "--val-images", labels.images)
    for name, options, warned in (("same", option, False), ("other", (), True)):
        evaluation = (*common, *weights, *val, "--work-dir", tmp_path / name, *options)
        code, output = invoke("evaluate", *evaluation)
        assert code == 0, output
        assert (difference in output) == warned, output


def test_a_checkpoint_that_a_run_goes_on_from_is_not_exported_over(tmp_path):
    last = begun(tmp_path)
    (tmp_path / "F").mkdir()
    for name in ("epoch_2.pth", "last_checkpoint"):
        (tmp_path / "F" / name).write_text("of a fine-tuning")
    code, output = invoke("export", last, tmp_path / "F" / "epoch_2.pth")
    assert code != 0
    assert "goes on from" in output
    assert (tmp_path / "F" / "epoch_2.pth").read_text() == "of a fine-tuning"


def test_a_fine_tuning_in_the_folder_of_another_that_is_at_work_is_refused(labels, tmp_path):
    with alone_in(tmp_path / "F"):
        # Of another process: a process never stands in its own way.
        second = Command(
            [
                *("finetune", "--config", str(CONFIGS / "tiny_fcos.py"), "--train", str(labels.annotations)),
                *("--train-images", str(labels.images), "--work-dir", str(tmp_path / "F"), "--epochs", "1"),
            ]
        )
        assert f"another run is at work in {tmp_path / 'F'} (process {os.getpid()} on " in finish(
            second, expect=1
        )
    assert sorted(path.name for path in (tmp_path / "F").iterdir()) == [".lock"]
