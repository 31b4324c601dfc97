"""Encoders: anything that maps normalised images to features."""

from __future__ import annotations
