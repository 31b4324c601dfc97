"""What is trained on frozen features."""

from __future__ import annotations
