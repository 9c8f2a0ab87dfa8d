"""Which samples make a step on a rank: a slice of the one global order.

The endless sequence epoch 0, epoch 1, ... is cut into global batches of G images, and rank r takes the r-th of a
batch's equal parts. So another number of ranks sees the same global batches, every rank makes the same number of
steps whatever the remainder (an epoch may end inside a batch), and where to go on is three integers.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch.utils.data import Sampler

from aligndet_train.stream.order import EpochOrder
from proposals.errors import AlignDetError

Position = tuple[int, int]


class StreamState(NamedTuple):
    """Where the order is to be gone on with: ``position`` images of ``epoch`` are done. Enough to resume exactly."""

    seed: int
    epoch: int
    position: int


class StepSampler(Sampler[list[Position]]):
    """Batch sampler that yields, for each step, this rank's list of (epoch, dataset index).

    shard_sizes, window: see EpochOrder. start: the state to go on from, see ``state_after``.
    batch_size: images per step on one rank. steps: how many to yield.
    expect: called with the shards of a window and of the next one when the first is entered.
    Raises AlignDetError for an empty dataset.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        *,
        start: StreamState,
        batch_size: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 8,
        expect: Callable[[list[int]], None] | None = None,
    ) -> None:
        self.shard_sizes = list(shard_sizes)
        self.samples = sum(self.shard_sizes)
        if self.samples == 0:
            raise AlignDetError("the dataset has no image: mine some first (`aligndet mine IMAGES OUT`)")
        self.start, self.window, self.steps = start, window, steps
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self._expect, self._entered = expect, (-1, -1)
        self._cached: tuple[int, EpochOrder] | None = None

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[Position]]:
        for step in range(self.steps):
            first = self._images_before(step) + self.rank * self.batch_size
            self._announce(first)
            yield [self._at(image) for image in range(first, first + self.batch_size)]

    def state_after(self, steps: int) -> StreamState:
        """The state when ``steps`` steps from ``start`` on are done: the same on every rank."""
        return StreamState(self.start.seed, *divmod(self._images_before(steps), self.samples))

    def _images_before(self, step: int) -> int:
        done = self.start.epoch * self.samples + self.start.position
        return done + step * self.world_size * self.batch_size

    def _announce(self, image: int) -> None:
        epoch, position = divmod(image, self.samples)
        order = self._order(epoch)
        window = order.window_of(position)
        if self._expect is None or self._entered == (epoch, window):
            return
        self._entered = (epoch, window)
        following = order.window_shards(window + 1) or self._new_order(epoch + 1).window_shards(0)
        self._expect(order.window_shards(window) + following)

    def _at(self, image: int) -> Position:
        epoch, position = divmod(image, self.samples)
        return epoch, self._order(epoch)[position]

    def _order(self, epoch: int) -> EpochOrder:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self._new_order(epoch))
        return self._cached[1]

    def _new_order(self, epoch: int) -> EpochOrder:
        return EpochOrder(self.shard_sizes, self.start.seed, epoch, self.window)
