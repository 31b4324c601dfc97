"""Results of which theory says what they are: regressions whose error is known, with their predictions stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from equibench.evaluation.evaluator import EVALUATORS
from equibench.records import RECORDS, Record, keep_predictions, predictions_path, read_records, write_records
from equibench.report.definition import load_definition, table_frame
from equibench.utils.files import digest_of

ROOT = Path(__file__).parent.parent
PAIRS = 400
ROWS = {"reconstruction": 0.3, "vicreg": 0.6, "sie_rot": 0.6, "random_init": 0.9}
"""Standard deviation of each row's errors, in units of θ's; two rows differ by chance alone."""
TASKS = ("rotation", "blur")


def write_results(folder: Path, rows: dict[str, float] | None = None, seeds: tuple[int, ...] = (0,)) -> list[Record]:
    """Table 2 of some rows and two tasks in `folder`/results/tiny/table2, and its predictions in `folder`/runs."""
    base = next(r for r in read_records(ROOT / "results/demo/table2" / RECORDS) if r.features == "full")
    rows, records = rows or ROWS, []
    for task in TASKS:
        targets = np.random.default_rng(len(task)).normal(size=(PAIRS, 1))
        for n, (row, spread) in enumerate(rows.items()):
            for seed in seeds:
                noise = np.random.default_rng([n, seed, len(task)]).normal(size=(2, PAIRS, 1))
                arrays = {
                    "targets": targets, "mean": np.zeros(1), "std": np.ones(1), "size": np.array(32),
                    "transformation": np.array(task), "cluster": np.array(1), "pairs": np.array(1000),
                    "full/predictions": (targets + spread * noise).astype(np.float32),
                }  # fmt: skip
                digest = digest_of([task, row, seed])
                keep_predictions(predictions_path(folder / "runs/tiny/solids-headline", digest), arrays)
                metrics = EVALUATORS.get("regression").scores(arrays, "full")
                named = {"baseline": row, "task": task, "profile": "tiny", "metrics": metrics, "diagnostics": None}
                about = {"evaluation_sha256": digest, "seeds": base.seeds.model_copy(update={"pretraining": seed})}
                command = {"command": f"equibench table table2 --rows {row} --columns {task}", "trained": None}
                records.append(base.model_copy(update={**named, **about, **command}))
    place = folder / "results/tiny/table2"
    write_records(place / RECORDS, records)
    definition = load_definition("table2")
    names = [r for r in (*definition.rows, "random_init") if r in rows]
    frame = table_frame(definition, names, list(TASKS), records)
    (place / "table2.csv").write_text(frame.to_csv(index=False), encoding="utf-8")
    return records
