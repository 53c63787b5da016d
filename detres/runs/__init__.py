"""A run: its folder, its state, its settings, its life."""
