"""The order of samples: shards are permuted, then samples shuffled inside a window of shards.

Reads stay local to a few open shards, yet no batch is made of one shard's neighbours. The order knows nothing of
ranks, workers or batch sizes: those only slice it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class EpochOrder:
    """A permutation of ``range(sum(shard_sizes))``, a pure function of its arguments, made window by window.

    shard_sizes: images in each shard, in dataset order (row i of the dataset lies in the shard that ``cumsum``
    says). window: how many shards are shuffled together. Memory: the shards and one window of images, however
    large the dataset.
    """

    def __init__(self, shard_sizes: Sequence[int], seed: int, epoch: int, window: int = 8) -> None:
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self._seeds, self._window = (seed, epoch), window
        self._starts = np.cumsum(sizes) - sizes
        self._sizes = sizes
        self._shards = np.random.default_rng(self._seeds).permutation(len(sizes))
        per_window = np.add.reduceat(sizes[self._shards], np.arange(0, len(sizes), window))
        self._ends = np.cumsum(per_window)
        self._held: tuple[int, Indices] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, position: int) -> int:
        """The dataset index at ``position``; neighbours in one window cost one shuffle. Raises IndexError."""
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} of an epoch of {len(self)} images")
        number = self.window_of(position)
        if self._held is None or self._held[0] != number:
            self._held = (number, self._shuffled(number))
        block = self._held[1]
        return int(block[position - int(self._ends[number]) + len(block)])

    def window_of(self, position: int) -> int:
        """The number of the window that ``position`` lies in."""
        return int(np.searchsorted(self._ends, position, side="right"))

    def window_shards(self, number: int) -> list[int]:
        """The shards of window ``number``, as indices of ``shard_sizes``; none after the last window."""
        shards: list[int] = self._shards[number * self._window : (number + 1) * self._window].tolist()
        return shards

    def _shuffled(self, number: int) -> Indices:
        shards = self.window_shards(number)
        block = np.concatenate([self._starts[s] + np.arange(self._sizes[s]) for s in shards])
        # From 1 on: a trailing zero would give the generator that permuted the shards.
        shuffled: Indices = np.random.default_rng((*self._seeds, number + 1)).permutation(block)
        return shuffled
