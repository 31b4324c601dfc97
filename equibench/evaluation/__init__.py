"""Evaluation: a row on a task becomes records. One file an evaluator, which registers itself."""
