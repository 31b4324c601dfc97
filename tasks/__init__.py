"""Evaluation tasks, one file a family; every module here is imported by the registry."""

from __future__ import annotations
