"""Does a fixed transformation turn all features by one rotation (W_f of CARE), and keep their distances (γ_f)?"""

from __future__ import annotations

from equibench.data.pair_sets import fixed_pairs
from equibench.data.pairs import Pairs
from equibench.families.base import Family, Kept, Measurement, kept, ratio_headline, ratio_scores
from equibench.families.regression_pairs import channels
from equibench.metrics.wahba import gamma_ratios, wahba_ratios
from equibench.setting import Setting, Subject
from equibench.task import Task


def measure(subject: Subject, task: Task, setting: Setting) -> Measurement:
    """A few fixed transformations, each of all images; the rotation is fitted on half of the images."""
    sizes = setting.metric_sizes
    pairs, count = fixed_pairs(setting.dataset, task, sizes.fixed_images, sizes.fixed)
    first = setting.encode(subject, setting.views.first(pairs))
    second = setting.encode(subject, setting.views.second(pairs))
    arrays: Kept = {}
    for name in subject.feature_sets():
        moved = channels(subject, second, name).reshape(count, len(pairs.image) // count, -1)
        still = channels(subject, first, name)[: moved.shape[1]]
        arrays |= kept(wahba_ratios(still, moved), name) | kept(gamma_ratios(still, moved), name)
    return Measurement(arrays)


def _pairs(task: Task, setting: Setting) -> tuple[Pairs, ...]:
    sizes = setting.metric_sizes
    return (fixed_pairs(setting.dataset, task, sizes.fixed_images, sizes.fixed)[0],)


WAHBA = Family(
    name="wahba",
    title="Rotation of features (Wahba) and γ_f",
    headline="wahba",
    code=("families/wahba.py", "families/regression_pairs.py", "metrics/wahba.py"),
    pairs=_pairs,
    measure=measure,
    scores=ratio_scores,
    resampled=ratio_headline("wahba"),
)
