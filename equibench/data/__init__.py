"""Datasets as memory-mapped arrays, their splits, and the stored pairs that every encoder is scored on."""

from __future__ import annotations
