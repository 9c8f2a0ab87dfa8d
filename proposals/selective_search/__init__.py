"""Selective search (Uijlings et al., IJCV 2013) as OpenCV computes it: one call, interchangeable engines."""

from proposals.selective_search.engines import propose
from proposals.selective_search.types import ENGINES, MODES, Engine, Mode, Proposals

__all__ = ["ENGINES", "MODES", "Engine", "Mode", "Proposals", "propose"]
