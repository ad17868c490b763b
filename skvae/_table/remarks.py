"""What a fit says of columns: nothing in them, hardly any difference, or a few wild cells."""

from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse import issparse

from .column import Array
from .columns import Columns
from .schema import Schema
from .statistics import ColumnMoments, may_be_wild, wild_among

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
WILD = (
    "holds one or a few values that are more than 100 times as far from the median as nearly all "
    "others. {decision}"
)
UNIT = WILD.format(
    decision="They set the column's unit, in which the others hardly differ. Correct them, make "
    "them missing, or choose the likelihood 'normal_scores' for the column."
)
LEFT_OUT = WILD.format(
    decision="They are taken as missing, and cost the column's mass of unseen values in scores."
)


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
    remarks = {n: LEFT_OUT for n, one in columns.shapes.items() if np.isfinite(one.reach).any()}
    alone = np.array([name == "gaussian" for name in columns.kinds.names])
    alone &= columns.scaling == "columns"
    for number in np.flatnonzero(alone & may_be_wild(moments, float(weight.sum()))).tolist():
        cells = X[:, [number]].toarray()[:, 0] if issparse(X) else X[:, number]
        seen = np.isfinite(cells) & (weight > 0.0)
        values, place = np.unique(cells[seen].astype(np.float64), return_inverse=True)
        if wild_among(values, np.bincount(place, weight[seen]).astype(np.float64)).any():
            remarks[number] = UNIT
    return remarks
