"""Evaluation tasks, one file a subject; every module here is imported by the registry."""
