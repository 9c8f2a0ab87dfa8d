"""Which samples make step s on rank r: a slice of the one global order.

Step s of the run takes positions [s G, (s+1) G) of the endless sequence epoch 0, epoch 1, ... (G images in the
global batch), and rank r the r-th of its equal parts. So another number of ranks sees the same global batches,
and resuming needs only the step.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from aligndet_train.stream.order import epoch_order
from proposals.errors import AlignDetError

Position = tuple[int, int]


class StepSampler(Sampler[list[Position]]):
    """Batch sampler that yields, for each step, this rank's list of (epoch, dataset index).

    shard_sizes, seed, window: see epoch_order. batch_size: images per step on one rank.
    steps: total steps of the run; start_step: the first one to yield.
    Raises AlignDetError for an empty dataset.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        seed: int,
        batch_size: int,
        steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        window: int = 8,
    ) -> None:
        self.shard_sizes = list(shard_sizes)
        self.samples = sum(self.shard_sizes)
        if self.samples == 0:
            raise AlignDetError("the dataset has no image: mine some first (`aligndet mine IMAGES OUT`)")
        self.seed, self.window = seed, window
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.steps, self.start_step = steps, start_step
        self._cached: tuple[int, npt.NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return self.steps - self.start_step

    def __iter__(self) -> Iterator[list[Position]]:
        for step in range(self.start_step, self.steps):
            first = (step * self.world_size + self.rank) * self.batch_size
            yield [self._at(position) for position in range(first, first + self.batch_size)]

    def _at(self, position: int) -> Position:
        epoch, offset = divmod(position, self.samples)
        return epoch, int(self._order(epoch)[offset])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, epoch_order(self.shard_sizes, self.seed, epoch, self.window))
        return self._cached[1]
