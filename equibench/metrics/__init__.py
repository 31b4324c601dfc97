"""Scores, computed in float64 from stored predictions."""

from __future__ import annotations
