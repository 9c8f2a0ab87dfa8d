"""Backbones beside mmdet's own, and weights of other projects: importing this registers both."""

from aligndet_train.backbones import scheme
from aligndet_train.backbones.timm_backbone import TimmBackbone

__all__ = ["TimmBackbone", "scheme"]
