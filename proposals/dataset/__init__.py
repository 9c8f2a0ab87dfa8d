"""The on-disk proposal dataset, format version 1: what is written, what proves it, how it is read."""

from proposals.dataset.reader import ProposalDataset, Record, open_dataset

__all__ = ["ProposalDataset", "Record", "open_dataset"]
