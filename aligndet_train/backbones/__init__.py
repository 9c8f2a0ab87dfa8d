"""Backbones beside mmdet's own. Importing this registers them: ``custom_imports`` names it in a config."""

from aligndet_train.backbones.timm_backbone import TimmBackbone

__all__ = ["TimmBackbone"]
