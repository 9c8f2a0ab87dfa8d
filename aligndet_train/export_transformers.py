"""mmdet's DETR under the names of Hugging Face transformers (5 and later): ``DetrForObjectDetection``.

Weights and normalisation are mmdet's. What transformers computes otherwise, `differences` says in words.
"""

import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from aligndet_train.detectors.class_names import class_name
from aligndet_train.export_differences import Rule, broken, option, resnet_rules
from aligndet_train.preprocess import InputSpec
from proposals.dataset.files import publish_all, remove_tree
from proposals.dataset.layout import TEMPORARY_MARK
from proposals.errors import AlignDetError

State = dict[str, Tensor]
_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
_OUTSIDE = {
    "neck.convs.0.conv": "model.input_projection",
    "query_embedding": "model.query_position_embeddings",
    "decoder.post_norm": "model.decoder.layernorm",
    "bbox_head.fc_cls": "class_labels_classifier",
    "bbox_head.reg_ffn.layers.0.0": "bbox_predictor.layers.0",
    "bbox_head.reg_ffn.layers.1": "bbox_predictor.layers.1",
    "bbox_head.fc_reg": "bbox_predictor.layers.2",
}
_POSITIONS = "positions are encoded otherwise"
_LAYERS = "layers of the transformer compute otherwise"
_NECK = "the last map is projected otherwise"
_RULES = [
    *resnet_rules([3]),
    Rule(
        "data_preprocessor.bgr_to_rgb", True, False, "images are BGR, and transformers' processor gives RGB"
    ),
    Rule("data_preprocessor.pad_size_divisor", 1, 1, "images are padded to other sizes"),
    Rule("neck.type", "ChannelMapper", None, _NECK),
    Rule("neck.kernel_size", 1, 3, _NECK),
    Rule("neck.norm_cfg", None, None, _NECK),
    Rule("neck.act_cfg", None, {"type": "ReLU"}, _NECK),
    Rule("positional_encoding.normalize", True, False, _POSITIONS),
    Rule("positional_encoding.temperature", 10000, 10000, _POSITIONS),
    Rule("positional_encoding.scale", 2 * math.pi, 2 * math.pi, _POSITIONS),
    Rule("positional_encoding.offset", 0.0, 0.0, _POSITIONS),
    *(
        Rule(f"{coder}.layer_cfg.{name}", value, value, _LAYERS)
        for coder in ("encoder", "decoder")
        for name, value in (("ffn_cfg.act_cfg.type", "ReLU"), ("ffn_cfg.num_fcs", 2), ("norm_cfg.type", "LN"))
    ),
    Rule("decoder.post_norm_cfg.type", "LN", "LN", "the decoder's output is normalised otherwise"),
    Rule("bbox_head.type", "DETRHead", None, "the head computes otherwise"),
    Rule("bbox_head.num_reg_fcs", 2, 2, "the box branch has another number of layers"),
    Rule("bbox_head.loss_cls.use_sigmoid", False, False, "scores are no softmax"),
]


def transformers_model(model_config: Mapping[str, Any]) -> nn.Module:
    """``DetrForObjectDetection`` of the sizes of a mmdet ``model`` config, with random weights; nothing is downloaded.

    Raises AlignDetError for anything but DETR on a plain ResNet.
    """
    _require_detr(model_config)
    import transformers

    library: Any = transformers  # its configs take more than their signatures say
    encoder, decoder = (model_config[part] for part in ("encoder", "decoder"))
    backbone = library.TimmBackboneConfig(
        backbone=f"resnet{model_config['backbone']['depth']}",
        use_pretrained_backbone=False,
        out_indices=[1, 2, 3, 4],
    )
    config = library.DetrConfig(
        backbone_config=backbone,
        num_queries=model_config["num_queries"],
        d_model=encoder["layer_cfg"]["self_attn_cfg"]["embed_dims"],
        encoder_layers=encoder["num_layers"],
        decoder_layers=decoder["num_layers"],
        encoder_attention_heads=encoder["layer_cfg"]["self_attn_cfg"]["num_heads"],
        decoder_attention_heads=decoder["layer_cfg"]["self_attn_cfg"]["num_heads"],
        encoder_ffn_dim=encoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
        decoder_ffn_dim=decoder["layer_cfg"]["ffn_cfg"]["feedforward_channels"],
        num_labels=model_config["bbox_head"]["num_classes"],
    )
    model: nn.Module = library.DetrForObjectDetection(config)
    return model


def to_transformers(state: Mapping[str, Tensor]) -> State:
    """``state``, under mmdet's names, under those of ``DetrForObjectDetection``."""
    renamed: State = {}
    for name, value in state.items():
        if name.endswith("num_batches_tracked"):
            continue  # its normalisation is frozen, and counts nothing
        if found := re.fullmatch(
            r"(\w+)\.layers\.(\d+)\.(self|cross)_attn\.attn\.in_proj_(weight|bias)", name
        ):
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                renamed[f"{_attention(found[1], found[2], found[3])}.{part}_proj.{found[4]}"] = rows.clone()
        else:
            renamed[_renamed(name)] = value
    return renamed


def differences(model_config: Mapping[str, Any]) -> list[str]:
    """Sentences on what a mmdet config computes otherwise than transformers; empty: equal in all options checked.

    Those are options of the backbone, neck, transformer, head and the model's ``data_preprocessor``, whose mean and
    deviation any processor takes. Raises AlignDetError for anything but DETR on a plain ResNet.
    """
    _require_detr(model_config)
    heads = option(model_config, "decoder.layer_cfg.self_attn_cfg.num_heads")
    across = Rule("decoder.layer_cfg.cross_attn_cfg.num_heads", heads, 8, _LAYERS)
    return broken([*_RULES, across], model_config)


def save_transformers(state: Mapping[str, Tensor], model_config: Mapping[str, Any], folder: Path) -> State:
    """Write a folder for ``DetrForObjectDetection.from_pretrained``; returns the model's state as it was written.

    Its preprocessor_config.json, for ``DetrImageProcessor``, has the config's mean and deviation, and the library's
    sizes. What ``state`` lacks, or has in another shape, keeps the library's random initialisation.
    """
    model: Any = transformers_model(model_config)
    own, renamed = model.state_dict(), to_transformers(state)
    fitting = {
        name: value for name, value in renamed.items() if name in own and value.shape == own[name].shape
    }
    model.load_state_dict(fitting, strict=False)
    _write_folder(folder, model, _processor(model_config))
    return dict(model.state_dict())


def _write_folder(folder: Path, *parts: Any) -> None:
    """Every file of ``parts`` whole or not at all, those that are there replaced; first the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{TEMPORARY_MARK}*"):  # by an export that was killed
        remove_tree(left)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_MARK, dir=folder) as written:
        for part in parts:
            part.save_pretrained(written)
        by_size = sorted(Path(written).iterdir(), key=lambda file: -file.stat().st_size)
        publish_all({file: folder / file.name for file in by_size})


def _processor(model: Mapping[str, Any]) -> Any:
    import transformers

    library: Any = transformers
    spec = InputSpec.from_stock(dict(model.get("data_preprocessor") or {}))
    # It scales pixels to 0-1 before it normalises them.
    mean, std = ([value / 255 for value in values] for values in (spec.mean, spec.std))
    return library.DetrImageProcessor(image_mean=mean, image_std=std)


def _require_detr(model: Mapping[str, Any]) -> None:
    backbone = model["backbone"]
    detector, trunk = class_name(model["type"]), class_name(backbone["type"])
    if detector != "DETR" or trunk != "ResNet" or backbone.get("style", "pytorch") != "pytorch":
        raise AlignDetError(
            f"transformers' DetrForObjectDetection is DETR on a ResNet (style pytorch), not {detector} on "
            f"{trunk}. Export for mmdet instead (without --to)"
        )


def _attention(coder: str, layer: str, kind: str) -> str:
    return f"model.{coder}.layers.{layer}.{'self_attn' if kind == 'self' else 'encoder_attn'}"


def _renamed(name: str) -> str:
    if name.startswith("backbone."):
        return f"model.backbone.model.{name.removeprefix('backbone.')}"
    if found := re.fullmatch(r"(\w+)\.layers\.(\d+)\.(self|cross)_attn\.attn\.out_proj\.(\w+)", name):
        return f"{_attention(found[1], found[2], found[3])}.o_proj.{found[4]}"
    if found := re.fullmatch(r"(\w+)\.layers\.(\d+)\.ffn\.layers\.(0\.0|1)\.(\w+)", name):
        return f"model.{found[1]}.layers.{found[2]}.mlp.fc{1 if found[3] == '0.0' else 2}.{found[4]}"
    if found := re.fullmatch(r"(\w+)\.layers\.(\d+)\.norms\.(\d)\.(\w+)", name):
        return f"model.{found[1]}.layers.{found[2]}.{_NORMS[found[1]][int(found[3])]}.{found[4]}"
    module, _, parameter = name.rpartition(".")
    return f"{_OUTSIDE[module]}.{parameter}" if module in _OUTSIDE else name
