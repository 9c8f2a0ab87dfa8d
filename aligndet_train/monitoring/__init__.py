"""What a run tells about itself while it trains: figures of every step, pictures, and the batch that broke it."""

from aligndet_train.monitoring.metrics import MetricsHook
from aligndet_train.monitoring.nonfinite import NonFiniteHook, NonFiniteLossError
from aligndet_train.monitoring.pictures import PictureHook

__all__ = ["MetricsHook", "NonFiniteHook", "NonFiniteLossError", "PictureHook"]
