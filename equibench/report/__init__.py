"""Tables for people: markdown for the repository, rich text for the terminal."""

from __future__ import annotations
