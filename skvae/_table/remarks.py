"""What a fit says of columns: nothing in them, hardly any difference, or a few wild cells."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import issparse

from .column import Array
from .columns import Columns
from .schema import Schema
from .statistics import ColumnMoments, far_out, may_be_wild

ROUNDED = (
    "varies by no more than the rounding of float64 and is taken as constant. If the differences "
    "matter, subtract what all values have in common before you convert them to floats."
)
TINY = (
    "holds numbers whose differences are too small to be squared in float64, and is taken as "
    "constant. Use another unit."
)
EMPTY = (
    "holds no value. Whatever later rows hold there is taken as missing. Drop it, or fit to rows "
    "that have values."
)
WILD = "holds {values} more than 100 times as far from the median as 99% of the column. {decision}"
UNIT = (
    "The column's unit follows from {it}, so the others hardly differ. Correct {it}, make {it} "
    "missing, or choose the likelihood 'normal_scores' for the column."
)
LEFT_OUT = "Neither draws nor expectations come near {it}."


def with_remarks(
    schema: Schema, moments: ColumnMoments, columns: Columns, X: Any, weight: Array
) -> Schema:
    """Say which columns hold nothing, numbers too close to be told apart, or a few wild ones."""
    said, wild = [], _remarks_of_wild(moments, columns, X, weight)
    for number, column in enumerate(schema.columns):
        remark = wild.get(number, "")
        remark = ROUNDED if moments.is_rounding[number] else remark
        remark = TINY if moments.is_tiny[number] else remark
        if moments.n_missing[number] == X.shape[0] and column.kind != "category":
            remark = EMPTY
        new = remark and not column.remark
        said.append(replace(column, remark=remark) if new else column)
    return replace(schema, columns=tuple(said))


def _remarks_of_wild(
    moments: ColumnMoments, columns: Columns, X: Any, weight: Array
) -> dict[int, str]:
    """Say it of columns whose unit wild cells decide, or whose shape leaves them out."""
    remarks: dict[int, str] = {}
    alone = np.array([name == "gaussian" for name in columns.kinds.names])
    alone &= columns.scaling == "columns"
    shaped = np.isin(np.arange(len(alone)), list(columns.shapes))
    if issparse(X):
        return remarks
    for number in np.flatnonzero(may_be_wild(moments) & (alone | shaped)).tolist():
        cells = X[:, number].astype(np.float64)
        seen = np.isfinite(cells) & (weight > 0.0)
        cells, count = cells[seen], weight[seen]
        wild = cells[far_out(cells, None if (count == count[0]).all() else count)]
        if not len(wild):
            continue
        one, most = len(wild) == 1, wild[np.abs(wild).argmax()]
        values = f"one value, {most:g}," if one else f"{len(wild)} values, such as {most:g},"
        decision = (LEFT_OUT if shaped[number] else UNIT).format(it="it" if one else "them")
        remarks[number] = WILD.format(values=values, decision=decision)
    return remarks
