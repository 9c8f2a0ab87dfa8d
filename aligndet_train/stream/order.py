"""The order of samples: shards are permuted, then samples shuffled inside a window of shards.

Reads stay local to a few open shards, yet no batch is made of one shard's neighbours. The order knows nothing of
ranks, workers or batch sizes: those only slice it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def epoch_order(shard_sizes: Sequence[int], seed: int, epoch: int, window: int = 8) -> npt.NDArray[np.int64]:
    """A permutation of ``range(sum(shard_sizes))``: [N] int64 indices into the dataset.

    shard_sizes: images in each shard, in dataset order (row i of the dataset lies in the shard that
    ``cumsum`` says). window: how many shards are shuffled together.
    """
    rng = np.random.default_rng([seed, epoch])
    starts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = rng.permutation(len(shard_sizes))
    blocks = []
    for first in range(0, len(shards), window):
        block = np.concatenate(
            [np.arange(starts[s], starts[s + 1], dtype=np.int64) for s in shards[first : first + window]]
        )
        blocks.append(rng.permutation(block))
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)
