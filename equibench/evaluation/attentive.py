"""Regression of θ by attentive pooling of the patch tokens: what they hold that their mean forgets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equibench.data.dataset import SPLITS
from equibench.evaluation.context import Context, Row
from equibench.evaluation.evaluator import Measurement, register_evaluator
from equibench.evaluation.regression import RegressionEvaluator
from equibench.evaluation.tokens import encode_tokens
from equibench.pairs.manifest import Pairs
from equibench.probes.attentive import fit_attentive
from equibench.probes.whitening import Split
from equibench.task import TASKS, Task, regression_tasks
from equibench.transforms.transformation import TRANSFORMATIONS

FEATURES = "attentive"


@register_evaluator
class AttentiveEvaluator(RegressionEvaluator):
    """The feature set *attentive* of the regression tasks: the same pairs, targets and scores, one probe seed.

    It is an evaluator of its own, so that a table which does not ask for it does not pay for it, and its tokens.
    """

    name, title = "attentive", "Regression by attentive pooling of patch tokens"
    transformations = ("rotation", "color", "blur", "translation", "crop", "flip")
    note = "θ from patch tokens through 32 learned queries; the pairs are those of the regression"

    def pairs(self, task: Task, context: Context) -> tuple[Pairs, ...]:
        """Those of the regression of the same transformation, nuisance included."""
        for regression in map(TASKS.get, regression_tasks()):
            if regression.transformation == task.transformation:
                return (context.pairs(regression),)
        return (context.pairs(task),)

    def measure(self, row: Row, task: Task, context: Context) -> Measurement:
        """Fit the attentive probe and keep its test predictions (float32) beside the targets.

        Raises:
            UserError: the encoder has neither tokens nor a map.
        """
        (pairs,) = self.pairs(task, context)
        first, second, places = encode_tokens(row, pairs, context)
        coded = TRANSFORMATIONS[task.transformation].encode(pairs.theta, context.size)
        rows = {split: pairs.rows(split) for split in SPLITS}
        splits = {s: Split(first[r], second[r], coded[r]) for s, r in rows.items()}
        options: dict[str, Any] = {"device": context.device, "bf16": context.bf16}
        found = fit_attentive(splits, places, context.probing, seeds=context.probe_seeds[:1], **options)
        train = coded[rows["train"]]
        arrays: dict[str, NDArray[Any]] = {
            "targets": np.ascontiguousarray(coded[rows["test"]]),
            "mean": train.mean(axis=0),
            "std": train.std(axis=0),
            "size": np.array(context.size),
            "transformation": np.array(task.transformation),
            "cluster": np.array(pairs.cluster),
            f"{FEATURES}/predictions": found.predictions.astype(np.float32),
        }
        return Measurement(arrays, {FEATURES: found.best_epochs}, (FEATURES,))
