"""Annotated data sets, and the batches made of them."""
