"""Comparison of models trained with the same recipe and several seeds."""
