"""Data sets on disk -> batches: readers, augmentation, loading."""
