"""What the server of `tests.aligndet_train.forked` imports once for all that it forks."""

import torch

from aligndet_train import ops

ops.install()
torch.set_num_threads(1)  # a pool of threads would not live on in a fork

import aligndet_train.finetuning.evaluation  # noqa: E402
import aligndet_train.finetuning.run  # noqa: E402
import aligndet_train.image_domain.training  # noqa: E402
import aligndet_train.training  # noqa: E402, F401
