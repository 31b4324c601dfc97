"""What a representation does under each transformation, beyond whether θ can be read (docs/protocol.md 8.6 to 8.12).

One task for each evaluator and transformation, named like "rotation.retrieval". The evaluators register them, with the
metrics that they report: see `equibench.evaluation` for one file each.
"""

from equibench.tasks import regression  # noqa: F401  # its tasks stand first, and lend these their titles

from equibench.evaluation.evaluator import EVALUATORS

EVALUATORS.discover()
