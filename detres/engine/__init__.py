"""The training loop and its parts; it knows no data set and no model."""
