"""Pairs of views: which image, which θ, which split; and the views themselves, rendered once."""
