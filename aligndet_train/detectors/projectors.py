"""The unsupervised head f_con with the projector g: two layers with a ReLU, as in MoCo v2."""

from mmengine.model import normal_init
from torch import nn


def conv_projector(channels: int, embed_dims: int, kernel_size: int, anchors: int = 1) -> nn.Sequential:
    """For dense heads: conv - ReLU - 1x1 conv. [B, channels, H, W] -> [B, anchors * embed_dims, H, W].

    Initialised as stock heads are, N(0, 0.01) and no bias: torch's own biases are as large as what RetinaNet's tower
    begins with, and boxes that look alike to begin with teach it little. With several anchors a cell the last layer has
    no bias at all: the loss divides by the length of an embedding, so each anchor's bias first learns far faster than
    the weights, and embeddings would tell anchors apart, not what is in them.
    """
    first = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
    last = nn.Conv2d(channels, anchors * embed_dims, 1, bias=anchors == 1)
    for layer in (first, last):
        normal_init(layer, std=0.01)
    return nn.Sequential(first, nn.ReLU(inplace=True), last)


def mlp_projector(channels: int, embed_dims: int) -> nn.Sequential:
    """For RoI heads: fc - ReLU - fc. [N, channels] -> [N, embed_dims]."""
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(inplace=True), nn.Linear(channels, embed_dims)
    )
