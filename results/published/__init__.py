"""The papers' tables as CSV: a baseline's id in each row, a task's id in each column."""
