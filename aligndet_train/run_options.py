"""What a user chooses about a pretraining run beside its config."""

from dataclasses import dataclass

from aligndet_train.stream.cache import CacheSpec
from aligndet_train.stream.dataset import Damaged


@dataclass(frozen=True)
class RunOptions:
    """How to run, none of which changes what is computed (but for ``amp``'s precision).

    workers: decoding processes. intervals in steps; a picture_interval of 0 draws none. resume: continue from
    WORK_DIR/last.pth when it is there. damaged: see ProposalStream. cache: where shards are kept on their way; None:
    they are read where they are.
    """

    amp: bool = False
    workers: int = 2
    log_interval: int = 10
    checkpoint_interval: int = 500
    picture_interval: int = 500
    resume: bool = True
    launcher: str = "none"
    damaged: Damaged = "raise"
    cache: CacheSpec | None = None
