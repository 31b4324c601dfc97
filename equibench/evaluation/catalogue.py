"""What the metrics beside R² are called, which way is better, and what they say: for tables, help and `explain`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MetricInfo:
    """One metric.

    Attributes:
        title: its name in print.
        better: "higher", "lower", or "neither" where it says where an encoder stands and not how good it is.
        meaning: in a few words.
        complement: whether the stored ratio is subtracted from one.
    """

    title: str
    better: Literal["higher", "lower", "neither"]
    meaning: str
    complement: bool = False


CATALOGUE: dict[str, MetricInfo] = {
    "equivariance_r2": MetricInfo("R² of f(gx)", "higher", "f(gx) predicted from f(x) and θ by W(θ)", True),
    "theta_gain": MetricInfo("gain by θ", "higher", "share of the residual without θ that θ explains", True),
    "r2_without_theta": MetricInfo("R² without θ", "neither", "the best linear guess that is not told θ", True),
    "identity_r2": MetricInfo("R² of f(x)", "neither", "the guess that g changes nothing", True),
    "identity_error": MetricInfo("identity error", "lower", "W(e) f(x) against f(x), over the spread of f"),
    "inverse_error": MetricInfo("inverse error", "lower", "W(g⁻¹) W(g) f(x) against f(x), over what g moves"),
    "composition_error": MetricInfo("composition error", "lower", "W(g₂) W(g₁) f(x) against f(g₂g₁x), over the move"),
    "explained_variance": MetricInfo("variance kept", "neither", "of the features by the action's components"),
    "mrr": MetricInfo("MRR", "higher", "mean reciprocal rank of the true transform among those of the same image"),
    "hit_at_1": MetricInfo("H@1", "higher", "how often the true transform is the nearest"),
    "hit_at_5": MetricInfo("H@5", "higher", "how often it is among the five nearest"),
    "invariance_ratio": MetricInfo(
        "invariance ratio", "neither", "E|f(x)-f(gx)|² over E|f(x)-f(x')|²: 0 invariant, 1 like another image"
    ),
    "cosine": MetricInfo("cosine", "neither", "E cos(f(x), f(gx))"),
    "cosine_centred": MetricInfo("centred cosine", "neither", "the same without the features' common part"),
    "consistency": MetricInfo("consistency", "higher", "how often a linear classifier says the same of x and gx"),
    "accuracy_first": MetricInfo("accuracy x", "higher", "of that classifier on x"),
    "accuracy_second": MetricInfo("accuracy gx", "higher", "of that classifier on gx"),
    "wahba": MetricInfo("Wahba", "lower", "residual of the best rotation R_g f(x) = f(gx) on other images, squared"),
    "wahba_identity": MetricInfo("Wahba, R = I", "neither", "the same without a rotation"),
    "wahba_gain": MetricInfo("Wahba gain", "higher", "share of the residual that the rotation takes away", True),
    "gamma_f": MetricInfo("γ_f", "lower", "do distances between images stay, relative to how far g moves them?"),
    "gamma_f_pooled": MetricInfo("γ_f, pooled", "lower", "the same as a quotient of sums"),
    "lee_pooled": MetricInfo("LEE pooled", "neither", "squared derivative of the pooled features, per dimension"),
    "lee_pooled_relative": MetricInfo("relative", "neither", "the same over the features' variance: 0 is invariant"),
    "lee_tokens": MetricInfo("LEE tokens", "lower", "squared derivative of the token map, moved back, per dimension"),
    "lee_tokens_relative": MetricInfo("relative (tokens)", "lower", "the same over the tokens' variance"),
    "degrees_mean": MetricInfo("mean error in degrees", "lower", "geodesic, mean over images and probe seeds"),
    "degrees_median": MetricInfo("median error in degrees", "lower", "geodesic, median over images"),
    "acc_at_15": MetricInfo("within 15°", "higher", "share of predicted rotations that are at most so far off"),
    "acc_at_30": MetricInfo("within 30°", "higher", "the same for 30°"),
    "hue_mean": MetricInfo("hue error in turns", "lower", "round the colour circle"),
    "floor_hue_mean": MetricInfo("floor's hue error", "lower", "of the floor alone, in turns"),
    "spot_hue_mean": MetricInfo("light's hue error", "lower", "of the light alone, in turns"),
    "r2_linear": MetricInfo("R², linear probe", "higher", "of a linear probe instead of the MLP"),
    "pose_retrieval_error": MetricInfo("PRE", "lower", "1 - <q, q'>² of the pose asked for and the pose found"),
    "hit_at_2": MetricInfo("H@2", "higher", "how often the true view is among the two nearest"),
    "hit_at_10": MetricInfo("H@10", "higher", "how often it is among the ten nearest"),
    "top1": MetricInfo("top-1 accuracy", "higher", "share of images of which the class is found"),
    "mean_per_class": MetricInfo("mean per class", "higher", "that share within each class, averaged over classes"),
    "mIoU": MetricInfo("mIoU", "higher", "intersection over union of a class's pixels, averaged over classes"),
    "mAcc": MetricInfo("mAcc", "higher", "share of a class's pixels that are found, averaged over classes"),
    "aAcc": MetricInfo("aAcc", "higher", "share of all pixels that are found"),
    "auc": MetricInfo("AUC", "higher", "how often a transformed pair is ranked above an untransformed one"),
    "balanced_accuracy": MetricInfo("balanced accuracy", "higher", "at the threshold of one half"),
}
