"""Datasets by name, their splits, decoding on the host, order and batches, augmentation on the device."""

SPLITS = ("train", "validation", "test")
