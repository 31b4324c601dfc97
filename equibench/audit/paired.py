"""Which rows of a table differ: paired bootstrap over test images, column by column, corrected by Holm."""

from collections.abc import Sequence

from numpy.typing import NDArray

from equibench.audit.compare import LEVEL, draws_by_seed, holm, paired_p
from equibench.audit.find import Predictions
from equibench.errors import UserError
from equibench.records import Record
from equibench.report.definition import Cells, Column, cells_of
from equibench.report.standing import Standing, Standings, by_overlap, contenders


def standings(
    rows: Sequence[str], columns: Sequence[Column], records: Sequence[Record], predictions: Predictions
) -> Standings:
    """The `Standing` of each column, by a paired test wherever the predictions of all its rows are here.

    The test asks only what print shows: is the best score better than each other one, and the second better than
    each below it? Holm's correction is over these questions of one column (at most 2 n - 3 of n rows), since each
    column is read for itself. With 2,000 resamples no p-value is below 1/1000, so that in a column of more than some
    25 rows nobody can be separated.
    """
    full = [record for record in records if record.features == "full"]
    cells = cells_of(full)
    return {column.name: _standing(column, rows, full, cells, predictions) for column in columns}


def _standing(
    column: Column, rows: Sequence[str], records: Sequence[Record], cells: Cells, predictions: Predictions
) -> Standing:
    order = contenders(column, rows, cells)
    mine = {row: [r for r in records if (r.baseline, r.task) == (row, column.task.name)] for row in order}
    if problem := _untestable(column, mine, predictions):
        return by_overlap(column, rows, cells, problem)
    try:
        draws = {row: draws_by_seed(found, predictions)[1] for row, found in mine.items()}
    except (UserError, KeyError) as error:
        return by_overlap(column, rows, cells, f"the predictions cannot be read: {str(error).splitlines()[0]}")
    sign = 1 if column.info.better == "higher" else -1
    return _separated(order, {row: sign * values for row, values in draws.items()})


def _untestable(column: Column, mine: dict[str, list[Record]], predictions: Predictions) -> str:
    """Why there can be no paired test; "" where there can be one."""
    records = [record for found in mine.values() for record in found]
    if len(mine) < 2:
        return "there are no two rows to compare"
    if any(record.main_metric != column.metric for record in records):
        return "only a task's main metric is tested"
    if len({(r.task_version, r.pairs_sha256, r.variant) for r in records}) > 1:
        return "the rows were scored on different pairs"
    absent = sorted(row for row, found in mine.items() if not any(map(predictions.path, found)))
    if absent:
        return f"the predictions{'' if len(absent) == len(mine) else ' of ' + ', '.join(absent)} are not here"
    return ""


def _separated(order: list[str], draws: dict[str, NDArray]) -> Standing:
    """From bootstrap draws (resamples,) by row, larger being better."""
    asked = [(order[n], other) for n in (0, 1) for other in order[n + 1 :]]
    corrected = holm([paired_p(draws[one] - draws[other]) for one, other in asked])
    p = dict(zip(asked, corrected, strict=True))
    level = [row for row in order[1:] if p[order[0], row] >= LEVEL]
    if level:
        return Standing(level=(order[0], *level), test="paired")
    ahead = len(order) == 2 or all(p[order[1], row] < LEVEL for row in order[2:])
    return Standing(best=order[0], second=order[1] if ahead else None, test="paired")
