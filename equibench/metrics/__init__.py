"""Scores, computed in float64 from stored predictions."""
