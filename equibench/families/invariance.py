"""How far does g move the features, and does it change what a linear classifier says?"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from equibench.data.pairs import Pairs, image_source
from equibench.families.base import Family, Kept, Measurement, kept, ratio_headline, ratio_scores
from equibench.families.regression_pairs import encoded, pairs_of
from equibench.metrics.action import Triple
from equibench.metrics.invariance import consistency_ratios, invariance_ratios
from equibench.setting import Setting, Subject
from equibench.task import Task

FIT_IMAGES = 5000
"""Training images that the classifier is fitted on at most."""


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """Distances on the regression test pairs; consistency where the data have classes."""
    pairs = pairs_of(task, setting)
    arrays: Kept = {}
    for name, triples in encoded(subject, task, setting).items():
        test = triples["test"]
        ratios = invariance_ratios(test.first, test.second)
        if len(setting.dataset.class_names) > 1:
            ratios |= consistency_ratios(*_classified(triples["train"], test, pairs, setting))
        arrays |= kept(ratios, name)
    return Measurement(arrays)


def _classified(train: Triple, test: Triple, pairs: Pairs, setting: Setting) -> tuple[np.ndarray, ...]:
    """What logistic regression, fitted on untransformed training images, says of x and of gx; and the truth."""
    labels = {s: image_source(setting.dataset, s).labels[pairs.image[pairs.rows(s)]] for s in ("train", "test")}
    _, rows = np.unique(pairs.image[pairs.rows("train")], return_index=True)
    rows = np.sort(rows)[:FIT_IMAGES]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
    classifier.fit(np.asarray(train.first[rows], dtype=np.float32), labels["train"][rows])
    one, other = (classifier.predict(np.asarray(f, dtype=np.float32)) for f in (test.first, test.second))
    return one, other, labels["test"]


INVARIANCE = Family(
    name="invariance",
    title="Invariance, and consistency of predictions",
    headline="invariance_ratio",
    code=("families/invariance.py", "families/regression_pairs.py", "metrics/invariance.py"),
    pairs=lambda task, setting: (pairs_of(task, setting),),
    measure=measure,
    scores=ratio_scores,
    resampled=ratio_headline("invariance_ratio"),
)
