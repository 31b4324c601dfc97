"""R² of rotation against training pairs, as three probes read it from the same features (docs/what-a-probe-reads.md).

    EQUIBENCH_DATA=/data python results/probe/figure.py

Nothing is pretrained. Views and features are kept below `--runs`, and each measurement is a line of curves.csv as soon
as it is made, so that the command goes on where it was interrupted. With 1,000 and 4,000 pairs the forms of the probe's
input are measured besides. MobileNetV2, which is slow, sees images of 96 px and at most 4,000 pairs, in one form.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equibench.config import RunConfig
from equibench.data.dataset import SPLITS
from equibench.evaluation.context import Context, Row
from equibench.evaluation.controls import pixel_features
from equibench.metrics.regression import Targets, r2_scores
from equibench.probes.mlp import fit_mlp, literal_schedule
from equibench.probes.ridge import fit_closed_form
from equibench.probes.whitening import SHRINKAGES, Block, Conditioning, Features, Split, Whitening, standardised
from equibench.profiles import get_profile
from equibench.runner.open import one_thread, open_context, open_score
from equibench.runner.plan import Place, TableRows
from equibench.task import TASKS
from equibench.transforms.transformation import TRANSFORMATIONS
from equibench.utils.files import write_atomically, write_text

CSV, FIGURE = (Path(__file__).parent / name for name in ("curves.csv", "curves.svg"))
PAIRS, MOBILENET_PAIRS, HELD_OUT, FORMS_AT = 40_000, 4000, (1000, 3000), (1000, 4000)
"""What is encoded, of which fewer training pairs are the first ones."""
TITLES = {
    "vit": "untrained ViT, mean of tokens",
    "vit_grid": "untrained ViT, 2 × 2 grid",
    "pixels": "pixels, 512 PCs",
    "mobilenet": "MobileNetV2, ImageNet",
    "mobilenet_untrained": "MobileNetV2, untrained",
}
PROBES = {"unwhitened": "P1's literal probe", "whitened": "MLP, whitened", "closed": "closed form"}
FORMS = ("views_standardised", "sums_standardised", "views_whitened", "sums_whitened")


@dataclass(frozen=True)
class Source:
    """Features of rotation pairs: an encoder's layer, or pixels where there is no row."""

    context: Context
    row: Row | None
    layer: str = "default"

    def splits(self, count: int) -> dict[str, Split]:
        """Of which the first so many training pairs are seen."""
        pairs = self.context.pairs(TASKS.get("rotation"))
        views = self.context.views.first(pairs), self.context.views.second(pairs)
        features: Sequence[Features]
        if self.row is None:
            features = pixel_features(*views, slice(0, count), self.context.spec)
        else:
            features = [self.context.encode(self.row, v, (self.layer,))[self.layer] for v in views]
        coded = TRANSFORMATIONS["rotation"].encode(pairs.theta, self.context.size)
        rows = {split: pairs.rows(split) for split in SPLITS}
        found = {split: Split(features[0][r], features[1][r], coded[r]) for split, r in rows.items()}
        return {**found, "train": found["train"].head(count)}


def sources(runs: Path, weights: str, stack: ExitStack) -> dict[str, Source]:
    """What is measured."""
    profile = get_profile("cifar10_cpu")  # the demo's encoder, larger probes
    profile = replace(profile, probing=replace(profile.probing, pairs=(PAIRS, *HELD_OUT)))
    config = RunConfig.of(profile=profile, runs=runs, device="cpu")
    context = open_context(config)
    vit = TableRows(config, context).find(Place("random_init", 0))
    found = {"vit": Source(context, vit), "vit_grid": Source(context, vit, "grid"), "pixels": Source(context, None)}
    options = {"arch": "torchvision:mobilenet_v2", "size": 96, "pairs": (MOBILENET_PAIRS, *HELD_OUT)}
    opened = open_score(weights, config.with_(**options), stack)
    rows = zip(("mobilenet", "mobilenet_untrained"), opened.rows, strict=False)  # then come controls without encoder
    return found | {name: Source(opened.context, row) for name, row in rows}


def views_whitened(train: Split, shrinkage: float) -> Conditioning:
    """Each view by the principal directions of both, side by side."""
    both = np.concatenate([np.asarray(train.first, dtype=np.float32), np.asarray(train.second, dtype=np.float32)])
    whitening = Whitening.of(Split(both, np.zeros_like(both), np.tile(train.targets, (2, 1))))  # its sum with nothing
    condition, kept = whitening.shrunk(shrinkage), len(whitening.variances[0])

    def conditioned(block: Block) -> Block:
        single = np.stack([block, np.zeros_like(block)], axis=2).reshape(-1, 2, block.shape[-1])
        return condition(single)[:, :kept].reshape(len(block), -1)

    return conditioned


def sums_standardised(train: Split) -> Conditioning:
    """Sum and difference, standardised column by column."""

    def turned(block: Block) -> Block:
        return np.stack([block[:, 0] + block[:, 1], block[:, 1] - block[:, 0]], axis=1)

    parts = turned(train.read(slice(0, len(train.targets))))
    condition = standardised(Split(parts[:, 0], parts[:, 1], train.targets))
    return lambda block: condition(turned(block))


def measure(
    splits: dict[str, Split], context: Context, probes: Sequence[str]
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Test predictions (seeds, N, 1) of each probe; all MLPs but P1's are trained as the headline's is."""
    train, settings, seeds = splits["train"], context.probing, context.probe_seeds
    whitening = Whitening.of(train)
    closed = fit_closed_form(splits, whitening)

    def mlp(conditioning: Conditioning) -> NDArray[np.float64]:
        return fit_mlp(splits, conditioning, settings, seeds=seeds).predictions

    def tuned(make: Callable[[float], Conditioning]) -> NDArray[np.float64]:  # by the MLP, on the validation pairs
        tried = [(fit_mlp(splits, make(s), settings, seeds=seeds[:1]).validation_mse, s) for s in SHRINKAGES]
        return mlp(make(min(tried)[1]))

    found: dict[str, Callable[[], NDArray[np.float64]]] = {
        "unwhitened": lambda: fit_mlp(splits, standardised(train), literal_schedule(settings), seeds=seeds).predictions,
        "whitened": lambda: mlp(whitening.shrunk(closed.shrinkage)),
        "closed": lambda: closed.predictions[None],
        "views_standardised": lambda: mlp(standardised(train)),
        "sums_standardised": lambda: mlp(sums_standardised(train)),
        "views_whitened": lambda: tuned(partial(views_whitened, train)),
        "sums_whitened": lambda: tuned(whitening.shrunk),
    }
    yield from ((probe, found[probe]()) for probe in probes)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """A panel for each encoder, a line for each probe."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "equibench", "font.size": 8})
    figure, shown = Figure(figsize=(11, 2.7), layout="constrained"), [n for n in TITLES if n in set(frame.encoder)]
    for axis, name in zip(figure.subplots(1, len(shown), sharey=True, squeeze=False)[0], shown, strict=True):
        for probe, colour in zip(PROBES, ("tab:red", "tab:blue", "tab:green"), strict=True):
            line = frame[(frame.encoder == name) & (frame.probe == probe)].sort_values("pairs")
            ends = np.abs(line[["low", "high"]].to_numpy().T - line.r2.to_numpy())
            axis.errorbar(line.pairs, line.r2, ends, color=colour, marker="o", markersize=3, label=PROBES[probe])
        axis.set_xscale("log", base=2)
        axis.set_xticks([1000, 4000, 16_000, 40_000], ["1k", "4k", "16k", "40k"])
        axis.set(title=TITLES[name], xlabel="training pairs", xlim=(800, 50_000), ylim=(-0.05, 1))
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("R² of rotation")
    figure.axes[-1].legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="1000,2000,4000,8000,16000,40000", help="numbers of training pairs")
    parser.add_argument("--encoders", default=",".join(TITLES), help="some of %(default)s")
    parser.add_argument("--weights", default="../shared/weights/mobilenet_v2-b0353104.pth", help="of MobileNetV2")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where views and features are kept")
    asked, lines = parser.parse_args(), list[dict[str, Any]]()
    if CSV.exists():
        lines = [dict(line) for line in pd.read_csv(CSV).to_dict("records")]  # type: ignore[arg-type]
    done = {(line["encoder"], line["pairs"], line["probe"]) for line in lines}
    wanted = []
    for count in sorted(map(int, asked.pairs.split(","))):  # all encoders with few pairs first
        for name in asked.encoders.split(","):
            slow = name.startswith("mobilenet")
            probes = [*PROBES, *(FORMS if count in FORMS_AT and not slow else ())]
            if (left := [p for p in probes if (name, count, p) not in done]) and not (slow and count > MOBILENET_PAIRS):
                wanted.append((count, name, left))
    with ExitStack() as stack:
        found = sources(asked.runs, asked.weights, stack) if wanted else {}
        for number, (count, name, probes) in enumerate(wanted, 1):
            context, start = found[name].context, time.monotonic()
            with one_thread(context):
                splits = found[name].splits(count)
                truth, fit = splits["test"].targets, splits["train"].targets
                targets = Targets(TRANSFORMATIONS["rotation"], context.size, truth, fit.mean(axis=0), fit.std(axis=0))
                for probe, predictions in measure(splits, context, probes):
                    score = r2_scores(targets, predictions)
                    ends = {"r2": score.r2, "low": score.r2_low, "high": score.r2_high}
                    line = {"encoder": name, "pairs": count, "probe": probe}
                    lines.append(line | {key: round(value, 4) for key, value in ends.items()})
                    write_text(CSV, pd.DataFrame(lines).to_csv(index=False))
                    took = f"R² {score.r2:.3f}, {time.monotonic() - start:.0f} s"
                    print(f"{number}/{len(wanted)} {name}, {count:,} pairs, {probe}: {took}", flush=True)
    write_atomically(FIGURE, lambda path: draw(pd.DataFrame(lines), path))


if __name__ == "__main__":
    main()
