"""From what was asked to records: open, plan, work, collect; tables, scores, curves, studies."""
