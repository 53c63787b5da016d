"""A trained detector on images."""
