"""Evaluating classifiers."""
