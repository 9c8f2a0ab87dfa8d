"""Stock samplers whose draws are an image's own: the same on any rank, in any batch, in any order of images.

mmdet's samplers draw from the process's generators, image after image, so who shares a rank with an image decides
what is sampled of it. Here each call first seeds them with what TwoViewPreprocessor wrote beside the ground truth.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from mmdet.models.task_modules import RandomSampler
from mmdet.models.task_modules.samplers import BaseSampler
from mmengine.structures import InstanceData
from torch import Tensor

SAMPLING_SEED = "sampling_seed"
"""Name of the metainfo of ``gt_instances`` that holds the image's seed, an int below 2**32."""


class PerImageSampler(BaseSampler):
    """Mixed into a stock sampler by ``per_image``."""

    def sample(
        self, assign_result: Any, pred_instances: InstanceData, gt_instances: InstanceData, **kwargs: Any
    ) -> Any:
        """As the stock sampler's, from generators seeded for this image; unseeded where it carries no seed."""
        seed = gt_instances.metainfo.get(SAMPLING_SEED)
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed)
        return super().sample(assign_result, pred_instances, gt_instances, **kwargs)


class DeviceRandomSampler(RandomSampler):
    """A RandomSampler that draws where its boxes are: no permutation of 200,000 anchors on the host, and no copy.

    The distribution is the stock one, every subset as likely as another; the draws are others.
    """

    def random_choice(self, gallery: Tensor, num: int) -> Tensor:
        """``num`` of ``gallery`` [N], each subset with the same probability."""
        # Equal float32 draws, one pair in some 2^24, would only prefer one order.
        return gallery[torch.rand(len(gallery), device=gallery.device).topk(num).indices]


def per_image(sampler: BaseSampler) -> None:
    """Make ``sampler``'s draws the image's own, in place."""
    if not isinstance(sampler, PerImageSampler):
        base: type = DeviceRandomSampler if type(sampler) is RandomSampler else type(sampler)
        sampler.__class__ = _with_seeds(base)


@cache
def _with_seeds(base: type) -> type:
    return type(base.__name__, (PerImageSampler, base), {})
