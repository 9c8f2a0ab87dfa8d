"""The on-disk proposal dataset, format version 1: what is written, what proves it, how it is read."""

from proposals.dataset.proposals_reader import ProposalBatch, ProposalReader
from proposals.dataset.reader import ProposalDataset, Record, open_dataset

__all__ = ["ProposalBatch", "ProposalDataset", "ProposalReader", "Record", "open_dataset"]
