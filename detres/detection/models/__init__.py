"""Faster R-CNN and its parts."""
