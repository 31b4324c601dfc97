"""Pretraining methods, one file each; every module here is imported by the registry."""

from __future__ import annotations
