"""Weights in torchvision and in transformers: one image, two libraries, the same outputs."""

import copy
import errno
import os
from pathlib import Path

import pytest
import torch
from mmdet.structures import DetDataSample
from torchvision.models.detection import retinanet_resnet50_fpn
from typer.testing import CliRunner

from aligndet_train import export_transformers
from aligndet_train.box_domain import build_detector, build_pretrainer
from aligndet_train.checkpoint import save_checkpoint
from aligndet_train.config import head_type, load_run_config, pretrain_config
from aligndet_train.detectors import adapter_for
from aligndet_train.export_elsewhere import export_elsewhere
from aligndet_train.export_torchvision import differences, to_torchvision, torchvision_model
from aligndet_train.export_transformers import save_transformers, to_transformers, transformers_model
from proposals.cli import build_app
from proposals.errors import AlignDetError

HEIGHT, WIDTH = 256, 384
MEAN_OF_MMDET, STD_OF_MMDET = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
MEAN, STD = torch.tensor(MEAN_OF_MMDET), torch.tensor(STD_OF_MMDET)
PREDICTORS = ("rpn_cls", "rpn_reg", "fc_cls", "fc_reg", "retina_cls", "retina_reg", "conv_cls", "conv_reg")
EXACT = {
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco": {
        "roi_head.bbox_roi_extractor.roi_layer.sampling_ratio": 2,
        "roi_head.bbox_roi_extractor.roi_layer.aligned": False,
    },
    "retinanet/retinanet_r50_fpn_1x_coco": {
        "neck.add_extra_convs": "on_output",
        "neck.relu_before_extra_convs": True,
        "test_cfg.max_per_img": 300,
    },
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco": {
        "backbone.style": "pytorch",
        "data_preprocessor.mean": MEAN_OF_MMDET,
        "data_preprocessor.std": STD_OF_MMDET,
        "data_preprocessor.bgr_to_rgb": True,
        "bbox_head.norm_on_bbox": True,
        "bbox_head.centerness_on_reg": True,
        "test_cfg.nms.iou_threshold": 0.6,
    },
}


def stock(name, tmp_path, options=None):
    path = tmp_path / "stock.py"
    path.write_text(f"_base_ = 'mmdet::{name}.py'\n")
    changes = {f"model.{key}": value for key, value in (options or {}).items()}
    return load_run_config(path, {}, {"model.backbone.init_cfg": None, **changes}).stock_model


def randomised(detector):
    """Weights at which nothing is zero or one by construction, and detections are many."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in detector.named_parameters():
            if name.startswith("backbone") and "bn" in name:
                value.uniform_(0.5, 1.0)
            elif ".scales." in name:
                value.fill_(1.5)
            elif value.ndim > 1 and not name.startswith("backbone"):
                # Small in the predictors: scores and sizes must not all end at their limits.
                small = 0.05 if any(part in name for part in PREDICTORS) else 1.0
                value.normal_(0, small * (2 / value[0].numel()) ** 0.5)
        for name, value in detector.named_buffers():
            if "running_mean" in name:
                value.normal_(0, 0.1)
            if "running_var" in name:
                value.uniform_(0.5, 1.5)
    return detector.eval()


@pytest.fixture(scope="module")
def rgb():
    return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))


def normalised(rgb):
    return ((rgb * 255 - MEAN[:, None, None]) / STD[:, None, None])[None]


def sample():
    shape = (HEIGHT, WIDTH)
    facts = {"img_shape": shape, "ori_shape": shape, "batch_input_shape": shape, "pad_shape": shape}
    return DetDataSample(metainfo={**facts, "scale_factor": (1.0, 1.0)})


def pair(name, tmp_path, thresholds=None):
    config = stock(name, tmp_path, {**EXACT[name], **(thresholds or {})})
    torch.manual_seed(0)
    ours = randomised(build_detector(copy.deepcopy(config)))
    theirs = torchvision_model(config, min_size=HEIGHT, max_size=WIDTH).eval()
    state = to_torchvision(ours.state_dict(), config)
    theirs.load_state_dict(state, strict=True)
    assert len(differences(config)) == len(thresholds or {})
    return ours, theirs


def test_faster_rcnn_detects_the_same(rgb, tmp_path):
    ours, theirs = pair("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", tmp_path)
    with torch.no_grad():
        (found,) = ours.predict(normalised(rgb), [sample()])
        (expected,) = theirs([rgb])
    mine = found.pred_instances
    assert len(mine) > 20
    assert len(mine) == len(expected["boxes"])
    assert torch.allclose(mine.scores, expected["scores"], atol=1e-4)
    assert torch.allclose(mine.bboxes, expected["boxes"], atol=1e-2, rtol=1e-4)
    assert torch.equal(mine.labels + 1, expected["labels"])


@pytest.mark.parametrize("name", [name for name in EXACT if "faster" not in name])
def test_dense_heads_give_the_same_maps(rgb, tmp_path, name):
    ours, theirs = pair(name, tmp_path)
    with torch.no_grad():
        maps = ours(normalised(rgb), mode="tensor")
        expected = theirs.head(list(theirs.backbone(normalised(rgb)).values()))
    names = ("cls_logits", "bbox_regression", "bbox_ctrness")
    for parts, key in zip(maps, names, strict=False):
        values = expected[key].shape[-1]
        flat = [part.permute(0, 2, 3, 1).reshape(1, -1, values) for part in parts]
        if key == "bbox_regression" and "fcos" in name:
            # mmdet multiplies by the stride here, torchvision when it decodes.
            flat = [level / stride for level, stride in zip(flat, (8, 16, 32, 64, 128), strict=True)]
        assert torch.allclose(torch.cat(flat, dim=1), expected[key], atol=1e-4, rtol=1e-4)


def test_dense_detectors_decode_to_the_same_boxes(rgb, tmp_path):
    # Not torchvision's 300 boxes: torchvision_model takes thresholds from the config.
    ours, theirs = pair("retinanet/retinanet_r50_fpn_1x_coco", tmp_path, {"test_cfg.max_per_img": 100})
    with torch.no_grad():
        (found,) = ours.predict(normalised(rgb), [sample()])
        (expected,) = theirs([rgb])
    assert len(found.pred_instances) == len(expected["boxes"]) > 20
    assert torch.allclose(found.pred_instances.scores, expected["scores"], atol=1e-4)
    assert torch.allclose(found.pred_instances.bboxes, expected["boxes"], atol=1e-2, rtol=1e-4)


def test_fcos_points_are_at_the_centres_of_cells(tmp_path):
    ours, theirs = pair("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", tmp_path)
    points = ours.bbox_head.prior_generator.single_level_grid_priors((2, 3), 0, device="cpu")
    (cell,) = theirs.anchor_generator.cell_anchors[0]
    assert points[0].tolist() == ((cell[:2] + cell[2:]) / 2).tolist() == [4.0, 4.0]


def test_stock_configs_say_what_differs(tmp_path):
    for name, options in EXACT.items():
        said = " ".join(differences(stock(name, tmp_path)))
        assert all(option in said for option in options), said


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "data_preprocessor.bgr_to_rgb", False),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "data_preprocessor.mean", (103.53, 116.28, 123.675)),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "data_preprocessor.std", [1.0, 1.0, 1.0]),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "rpn_head.anchor_generator.scales", [4]),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "rpn_head.anchor_generator.ratios", [1.0]),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "rpn_head.bbox_coder.target_stds", [0.1] * 4),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "roi_head.bbox_head.bbox_coder.target_stds", [0.05] * 4),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "backbone.strides", (1, 2, 2, 1)),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "backbone.dilations", (1, 1, 1, 2)),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "neck.upsample_cfg", {"mode": "bilinear"}),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "rpn_head.anchor_generator.center_offset", 0.5),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "roi_head.bbox_roi_extractor.finest_scale", 112),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "roi_head.bbox_head.reg_class_agnostic", True),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "test_cfg.rpn.max_per_img", 300),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "test_cfg.rcnn.score_thr", 0.5),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "test_cfg.rcnn.nms.iou_threshold", 0.9),
        ("faster_rcnn/faster-rcnn_r50_fpn_1x_coco", "test_cfg.rcnn.nms.type", "soft_nms"),
        ("retinanet/retinanet_r50_fpn_1x_coco", "bbox_head.anchor_generator.center_offset", 0.5),
        ("retinanet/retinanet_r50_fpn_1x_coco", "bbox_head.type", "RetinaSepBNHead"),
        ("retinanet/retinanet_r50_fpn_1x_coco", "test_cfg.max_per_img", 100),
        ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", "bbox_head.norm_cfg.num_groups", 16),
        ("retinanet/retinanet_r50_fpn_1x_coco", "bbox_head.anchor_generator.octave_base_scale", 2),
        ("retinanet/retinanet_r50_fpn_1x_coco", "bbox_head.anchor_generator.strides", [4, 8, 16, 32, 64]),
        ("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco", "bbox_head.strides", [4, 8, 16, 32, 64]),
    ],
)
def test_one_setting_that_differs_is_said(name, option, value, tmp_path):
    (said,) = differences(stock(name, tmp_path, {**EXACT[name], option: value}))
    assert said.startswith(f"{option} is {value!r}: ")


def test_tuples_are_the_same_numbers(tmp_path):
    name = "retinanet/retinanet_r50_fpn_1x_coco"
    same = {"bbox_head.anchor_generator.ratios": (0.5, 1, 2), "data_preprocessor.mean": tuple(MEAN_OF_MMDET)}
    assert differences(stock(name, tmp_path, {**EXACT[name], **same})) == []


def test_thresholds_are_those_of_the_config_unless_named(tmp_path):
    options = {
        "rcnn.score_thr": 0.3,
        "rcnn.nms.iou_threshold": 0.9,
        "rpn.nms_pre": 200,
        "rcnn.max_per_img": -1,
    }
    name = "faster_rcnn/faster-rcnn_r50_fpn_1x_coco"
    config = stock(name, tmp_path, {f"test_cfg.{key}": value for key, value in options.items()})
    heads = (model := torchvision_model(config, box_score_thresh=0.1)).roi_heads
    assert (heads.score_thresh, heads.nms_thresh, model.rpn._pre_nms_top_n["testing"]) == (0.1, 0.9, 200)
    assert heads.detections_per_img == 100  # mmdet's -1, all, is none of torchvision's
    assert torchvision_model(config).roi_heads.score_thresh == 0.3


def with_paths(config):
    """As mmengine writes a config in pure Python: every class by the path that imports it."""
    if isinstance(config, dict):
        return {
            key: f"mmdet.models.{value}" if key == "type" else with_paths(value)
            for key, value in config.items()
        }
    return config


@pytest.mark.parametrize("name", EXACT)
def test_types_may_have_a_scope_or_be_import_paths(name, tmp_path):
    config = with_paths(stock(name, tmp_path, EXACT[name]))
    assert config["backbone"]["type"] == "mmdet.models.ResNet"
    assert differences(config) == []
    assert to_torchvision({"neck.lateral_convs.0.conv.bias": torch.zeros(1)}, config)


def test_other_architectures_and_scales_are_refused(tmp_path):
    with pytest.raises(AlignDetError, match="torchvision has no ATSS"):
        torchvision_model(stock("atss/atss_r50_fpn_1x_coco", tmp_path))
    with pytest.raises(AlignDetError, match="not DeformableDETR on ResNet"):
        transformers_model(stock("deformable_detr/deformable-detr_r50_16xb2-50e_coco", tmp_path))
    name = "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco"
    config = stock(name, tmp_path, EXACT[name])
    state = build_detector(copy.deepcopy(config)).state_dict()
    state["bbox_head.scales.2.scale"] += 0.5
    with pytest.raises(AlignDetError, match=r"another scale for each level.*without --keep-predictors"):
        to_torchvision(state, config)


@pytest.fixture
def small_detr(tmp_path):
    options = {"encoder.num_layers": 2, "decoder.num_layers": 2, "num_queries": 20}
    return stock("detr/detr_r50_8xb2-150e_coco", tmp_path, options)


def test_detr_gives_the_same_outputs_in_transformers(rgb, small_detr, tmp_path):
    from transformers import DetrForObjectDetection

    ours = randomised(build_detector(copy.deepcopy(small_detr)))
    assert set(to_transformers(ours.state_dict())) == set(transformers_model(small_detr).state_dict())
    save_transformers(ours.state_dict(), small_detr, tmp_path / "hf")
    theirs = DetrForObjectDetection.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    pixels = normalised(rgb)
    with torch.no_grad():
        hidden = ours.forward_transformer(ours.extract_feat(pixels), [sample()])["hidden_states"]
        scores, boxes = (layers[-1] for layers in ours.bbox_head(hidden))
        found = theirs(pixel_values=pixels, pixel_mask=torch.ones(1, HEIGHT, WIDTH))
    assert torch.allclose(scores, found.logits, atol=1e-4)
    assert torch.allclose(boxes, found.pred_boxes, atol=1e-4)
    assert boxes.std() > 0.01


def test_a_folder_for_transformers_keeps_what_it_had_when_it_cannot_be_written(
    small_detr, tmp_path, monkeypatch
):
    from transformers import DetrForObjectDetection, DetrImageProcessor

    folder = tmp_path / "hf"
    state = build_detector(copy.deepcopy(small_detr)).state_dict()
    save_transformers(state, small_detr, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(self, place):
        (Path(place) / "preprocessor_config.json").write_text("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(place))

    with monkeypatch.context() as patch:
        patch.setattr(DetrImageProcessor, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            save_transformers({name: value + 1 for name, value in state.items()}, small_detr, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    save_transformers({name: value * 0 for name, value in state.items()}, small_detr, folder)
    after = DetrForObjectDetection.from_pretrained(folder, local_files_only=True).state_dict()
    assert not any(value.any() for value in after.values())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("backbone.strides", (1, 2, 2, 1)),
        ("backbone.dilations", (1, 1, 1, 2)),
        ("data_preprocessor.bgr_to_rgb", False),
        ("data_preprocessor.pad_size_divisor", 32),
        ("positional_encoding.normalize", False),
        ("positional_encoding.temperature", 20),
        ("backbone.avg_down", True),
        ("encoder.layer_cfg.ffn_cfg.act_cfg.type", "GELU"),
        ("decoder.layer_cfg.cross_attn_cfg.num_heads", 4),
    ],
)
def test_one_setting_of_detr_that_differs_is_said(option, value, small_detr, tmp_path):
    assert export_transformers.differences(with_paths(small_detr)) == []
    changed = stock("detr/detr_r50_8xb2-150e_coco", tmp_path, {option: value})
    (said,) = export_transformers.differences(changed)
    assert said.startswith(f"{option} is {value!r}: ")


def test_images_are_normalised_by_the_configs_mean_and_deviation(rgb, tmp_path):
    from transformers import DetrImageProcessor

    options = {"data_preprocessor.mean": [1.0, 2.0, 3.0], "data_preprocessor.std": [1.0, 50.0, 100.0]}
    small = {"encoder.num_layers": 1, "decoder.num_layers": 1, **options}
    save_transformers({}, stock("detr/detr_r50_8xb2-150e_coco", tmp_path, small), tmp_path / "hf")
    processor = DetrImageProcessor.from_pretrained(tmp_path / "hf", local_files_only=True)
    pixels = (rgb * 255).byte()
    found = processor(pixels, do_resize=False, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in options.values())
    assert torch.allclose(found, (pixels - mean) / std, atol=1e-4, rtol=1e-4)


def test_weights_of_another_shape_are_left_out(small_detr, tmp_path):
    small_detr["neck"]["kernel_size"] = 3
    state = build_detector(copy.deepcopy(small_detr)).state_dict()
    written = save_transformers(state, small_detr, tmp_path / "hf")
    assert written["model.input_projection.weight"].shape[2:] == (1, 1)
    assert torch.equal(written["model.query_position_embeddings.weight"], state["query_embedding.weight"])
    assert any(
        line.startswith("neck.kernel_size is 3") for line in export_transformers.differences(small_detr)
    )


def checkpoint_of(config, folder, proposals=10):
    """The checkpoint of a run's first step, as `pretrain` leaves it."""
    adapter = adapter_for(config["type"], head_type(config))
    pretrain = pretrain_config({**adapter.defaults, "proposals_per_image": proposals}, "test")
    model = build_pretrainer(config, pretrain)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    return model, save_checkpoint(folder, model, optimizer, 1, {"config": "test", "stock_model": config})


def exported(*arguments):
    done = CliRunner().invoke(build_app(), ["export", *map(str, arguments)], env={"COLUMNS": "200"})
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_verb_writes_what_torchvision_loads(tmp_path):
    config = stock("retinanet/retinanet_r50_fpn_1x_coco", tmp_path)
    model, checkpoint = checkpoint_of(config, tmp_path)
    said = exported(checkpoint, tmp_path / "m.pth", "--to", "torchvision")
    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    state = torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"]
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    # Another head than torchvision's P6, and the predictors.
    assert {name.rsplit(".", 1)[0] for name in missing} == {
        "backbone.fpn.extra_blocks.p6",
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
    }
    assert torch.equal(
        theirs.head.regression_head.conv[3][0].weight, model.student.bbox_head.reg_convs[3].conv.weight
    )
    assert "neck.add_extra_convs is 'on_input': P6 is made of another map than P5" in " ".join(said.split())


def test_verb_writes_a_folder_that_transformers_loads(small_detr, tmp_path):
    from transformers import DetrForObjectDetection

    small_detr["data_preprocessor"]["bgr_to_rgb"] = False
    model, checkpoint = checkpoint_of(small_detr, tmp_path)
    said = exported(checkpoint, tmp_path / "hf", "--to", "transformers")
    assert "other than in transformers: data_preprocessor.bgr_to_rgb is False" in " ".join(said.split())
    theirs = DetrForObjectDetection.from_pretrained(tmp_path / "hf", local_files_only=True)
    assert torch.equal(theirs.model.query_position_embeddings.weight, model.student.query_embedding.weight)
    assert torch.equal(theirs.model.decoder.layernorm.weight, model.student.decoder.post_norm.weight)
    assert theirs.class_labels_classifier.out_features == 81
    with pytest.raises(AlignDetError, match="transformers reads a folder"):
        export_elsewhere(checkpoint, tmp_path / "hf.pth", "transformers")
    (tmp_path / "a file").touch()
    with pytest.raises(AlignDetError, match="a file"):
        export_elsewhere(checkpoint, tmp_path / "a file", "transformers")
