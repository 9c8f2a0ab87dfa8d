"""Stock mmdet configs train one step and predict on a machine without a compiled mmcv."""

import logging
from importlib.resources import files

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

SIDE = 128
SMALL_TRANSFORMER = {
    "encoder.num_layers": 1,
    "decoder.num_layers": 2,
    "num_queries": 20,
    "test_cfg.max_per_img": 20,
}
SMALL_DENSE_HEAD = {"bbox_head.stacked_convs": 1, "bbox_head.feat_channels": 64}
FEW_BOXES = {"train_cfg.rpn_proposal.max_per_img": 50, "test_cfg.rpn.max_per_img": 50}
SMALL_ROI_HEAD = {**FEW_BOXES, "roi_head.bbox_head.fc_out_channels": 32}
SMALL_CASCADE = {**FEW_BOXES, **{f"roi_head.bbox_head.{stage}.fc_out_channels": 32 for stage in range(3)}}
CONFIGS = {
    "fcos": (
        "fcos/fcos_r18_fpn_gn-head-center-normbbox-centeronreg-giou_8xb8-amp-lsj-200e_coco.py",
        SMALL_DENSE_HEAD,
    ),
    "retinanet": ("retinanet/retinanet_r18_fpn_1x_coco.py", SMALL_DENSE_HEAD),
    "faster_rcnn": ("faster_rcnn/faster-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py", SMALL_ROI_HEAD),
    "cascade_rcnn": ("cascade_rcnn/cascade-rcnn_r18_fpn_8xb8-amp-lsj-200e_coco.py", SMALL_CASCADE),
    "atss": ("atss/atss_r18_fpn_8xb8-amp-lsj-200e_coco.py", SMALL_DENSE_HEAD),
    "detr": ("detr/detr_r18_8xb2-500e_coco.py", SMALL_TRANSFORMER),
    "deformable_detr": ("deformable_detr/deformable-detr_r50_16xb2-50e_coco.py", SMALL_TRANSFORMER),
    "dino": ("dino/dino-4scale_r50_8xb2-12e_coco.py", SMALL_TRANSFORMER),
    # Deformable convolutions in the backbone.
    "fcos_dcn": (
        "fcos/fcos_r50-dcn-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.py",
        SMALL_DENSE_HEAD,
    ),
    "faster_rcnn_soft_nms": ("faster_rcnn/faster-rcnn_r50_fpn_soft-nms_1x_coco.py", SMALL_ROI_HEAD),
}


@pytest.fixture(autouse=True)
def _quiet_in_mmdet_scope():
    import mmdet.models  # noqa: F401  fills the registries

    init_default_scope("mmdet")
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # at this size threads mostly wait for each other
    yield
    torch.set_num_threads(threads)


def build(name: str) -> torch.nn.Module:
    from mmdet.registry import MODELS

    path, options = CONFIGS[name]
    config = Config.fromfile(str(files("mmdet").joinpath(".mim", "configs", path)))
    model = config.model
    model.backbone.init_cfg = None
    if model.backbone.depth == 50 and "dcn" not in name:
        model.backbone.depth = 18
        neck = {"in_channels": [channels // 4 for channels in model.neck.in_channels]}
        model.neck.update(neck)
    model.data_preprocessor.batch_augments = None
    config.merge_from_dict({f"model.{key}": value for key, value in options.items()})
    return MODELS.build(config.model)


def batch() -> dict[str, list]:
    from mmdet.structures import DetDataSample

    samples = []
    for number in range(2):
        shape = {"img_shape": (SIDE, SIDE), "ori_shape": (SIDE, SIDE), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo={**shape, "img_id": number})
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[10.0, 10, 70, 80], [40, 30, 120, 120]]), labels=torch.tensor([1, 2])
        )
        samples.append(sample)
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in samples]
    return {"inputs": images, "data_samples": samples}


def train_and_predict(model: torch.nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> None:
    model.to(device).init_weights()
    model.train()
    data = model.data_preprocessor(batch(), training=True)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss, _ = model.parse_losses(model.loss(data["inputs"], data["data_samples"]))
    loss.backward()
    assert loss.isfinite()
    moved = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert all(parameter.grad.isfinite().all() for parameter in moved)
    torch.optim.SGD(moved, lr=1e-5).step()
    model.eval()
    with torch.no_grad():
        data = model.data_preprocessor(batch(), training=False)
        found = model.predict(data["inputs"], data["data_samples"])
    assert len(found) == 2
    assert all(result.pred_instances.bboxes.shape[1] == 4 for result in found)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stock_detector_trains_a_step_and_predicts(name, device):
    train_and_predict(build(name), device)


@pytest.mark.parametrize("name", ["fcos", "faster_rcnn", "deformable_detr"])
def test_a_stock_detector_in_bfloat16(name, device):
    train_and_predict(build(name), device, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CONFIGS)
def test_a_stock_detector_in_half_precision(name):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    train_and_predict(build(name), torch.device("cuda"), torch.float16)
