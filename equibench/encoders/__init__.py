"""Encoders: anything that maps normalised images to features."""
