"""Reading a proposal dataset sample by sample, in an order that is a function of (dataset, seed, epoch)."""

from aligndet_train.stream.dataset import ProposalStream, Sample
from aligndet_train.stream.order import EpochOrder
from aligndet_train.stream.sampler import StepSampler, StreamState

__all__ = ["EpochOrder", "ProposalStream", "Sample", "StepSampler", "StreamState"]
