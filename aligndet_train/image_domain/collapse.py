"""Telling a collapsed output from a learning one: the loss cannot, it is lowest in both (SimSiam section 4.1)."""

import math
from collections import deque

import torch
from torch import Tensor


class CollapseMonitor:
    """Fires when the mean of the last ``window`` deviations lies below ``ratio`` of 1/sqrt(dims).

    Values stay on their device until they are asked for, so watching costs no wait.
    """

    def __init__(self, dims: int, ratio: float, window: int) -> None:
        self.limit = ratio / math.sqrt(dims)
        self._seen: deque[Tensor] = deque(maxlen=window)

    def watch(self, output_std: Tensor) -> None:
        """Take in one step's deviation, a scalar (see model.output_std)."""
        self._seen.append(output_std.detach())

    def verdict(self) -> float | None:
        """The mean deviation when it counts as collapsed, else None; also None before the window is full."""
        if len(self._seen) < (self._seen.maxlen or 0):
            return None
        mean = float(torch.stack(list(self._seen)).mean())
        return mean if mean < self.limit else None
