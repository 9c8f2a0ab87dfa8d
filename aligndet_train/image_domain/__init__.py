"""Pretraining the backbone without labels, on the images or the proposal crops of a dataset."""
