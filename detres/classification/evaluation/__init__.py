"""Scoring classifiers."""
