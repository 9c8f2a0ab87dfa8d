"""Selective search (Uijlings et al., IJCV 2013) as OpenCV computes it: one call, interchangeable engines."""

from proposals.selective_search.types import MODES, Mode, Proposals, propose

__all__ = ["MODES", "Mode", "Proposals", "propose"]
