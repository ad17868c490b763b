"""Rows are merged by value, split without loss, and drawn as often as they weigh."""

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array, csr_matrix

from skvae._table import duplicates
from skvae._table.automatic import look_at
from skvae._table.column import Column
from skvae._table.columns import fit_columns
from skvae._table.duplicates import merge_duplicates
from skvae._table.statistics import CHUNK_ROWS
from skvae._training.rows import (
    DenseCells,
    Rows,
    batches,
    encode_rows,
    epoch_order,
    folds,
    some_copies,
)
from skvae.likelihoods._names import kinds_of


def hold_out(copies, fraction, generator):
    drawn = some_copies(copies, int(copies.sum()), fraction, generator)
    return torch.zeros_like(copies).index_add(0, *drawn)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _merged(X, weight=None):
    """The merged rows and their weights."""
    index, weight, _ = merge_duplicates(X, np.ones(X.shape[0]) if weight is None else weight)
    return X[index], weight


def _as_set(rows, weight):
    return {(*row.tolist(), w) for row, w in zip(rows, weight, strict=True)}


# -- merging --------------------------------------------------------------------------------------

_rng = np.random.default_rng(0)
_grid = np.stack(np.meshgrid(np.arange(-50.0, 50.0), np.arange(100.0)), -1).reshape(-1, 2)
# Columns whose bits a weak hash would mix up: few of them set, all at one end, or nearly the same.
COLUMNS = {
    "normal": _rng.normal(size=(500, 3)),
    "bits": _rng.integers(0, 2, (3000, 10)).astype(float),
    "small integers as floats": _grid,
    "small integers, wide": _rng.integers(0, 3, (2000, 40)).astype(float),
    "powers of two": 2.0 ** _rng.integers(-20, 20, (3000, 2)),
    "signs": _rng.choice([-1.0, 1.0], (3000, 9)),
    "one differing last bit": 1.0 + _rng.integers(0, 40, (3000, 2)) * np.finfo(float).eps,
    "swapped columns": np.concatenate([_grid, _grid[:, ::-1]]),
    "one column": _rng.integers(0, 100, (1000, 1)).astype(float),
    "subnormal": _rng.integers(0, 20, (1000, 2)) * 5e-324,
    "huge": _rng.integers(0, 20, (1000, 2)) * 1e300,
    "one row": np.ones((1, 4)),
    "one distinct row": np.ones((CHUNK_ROWS + 5, 2)),
}
each_kind = pytest.mark.parametrize("kind", COLUMNS)


@each_kind
def test_every_distinct_row_stays_once_with_its_count(kind):
    X = COLUMNS[kind]
    distinct, counts = np.unique(X, axis=0, return_counts=True)
    rows, weight = _merged(X)
    assert len(rows) == len(distinct)
    assert _as_set(rows, weight) == _as_set(distinct, counts.astype(float))


@each_kind
def test_the_order_depends_on_the_values_alone(kind):
    X = COLUMNS[kind]
    order = np.random.default_rng(1).permutation(len(X))
    np.testing.assert_array_equal(_merged(X[order])[0], _merged(X)[0])
    np.testing.assert_array_equal(_merged(np.repeat(X, 2, axis=0))[0], _merged(X)[0])


@each_kind
def test_weights_add_up(kind):
    X = COLUMNS[kind]
    weight = np.random.default_rng(2).uniform(0.1, 2.0, len(X))
    rows, merged = _merged(X, weight)
    assert merged.sum() == pytest.approx(weight.sum())
    assert merged[0] == pytest.approx(weight[(rows[0] == X).all(1)].sum())


def test_weights_stand_for_repetitions():
    X = COLUMNS["normal"]
    times = np.random.default_rng(3).integers(0, 4, len(X))
    weighted, repeated = _merged(X, times.astype(float)), _merged(np.repeat(X, times, axis=0))
    np.testing.assert_array_equal(weighted[0], repeated[0])
    np.testing.assert_array_equal(weighted[1], repeated[1])


def test_rows_of_weight_zero_are_dropped():
    X = np.array([[1.0], [2.0], [1.0], [3.0]])
    rows, weight = _merged(X, np.array([0.0, 1.0, 2.0, 0.0]))
    assert _as_set(rows, weight) == {(1.0, 2.0), (2.0, 1.0)}


def test_minus_zero_equals_zero():
    X = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]])
    _, weight = _merged(X)
    assert sorted(weight) == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32, np.float64])
def test_the_order_does_not_depend_on_the_dtype(dtype):
    X = COLUMNS["bits"]
    np.testing.assert_array_equal(_merged(X.astype(dtype))[0].astype(float), _merged(X)[0])


def test_large_integers_that_float64_cannot_tell_apart_stay_apart():
    X = 2**60 + np.arange(4)[:, None]
    assert len(_merged(X)[0]) == 4


@pytest.mark.parametrize("order", ["C", "F"])
def test_the_layout_in_memory_does_not_matter(order):
    X = COLUMNS["normal"]
    np.testing.assert_array_equal(_merged(np.asarray(X[::-1], order=order))[0], _merged(X)[0])


def test_rows_of_one_hash_are_still_compared(monkeypatch):
    monkeypatch.setattr(duplicates, "_row_hash", lambda X: np.zeros(len(X), np.uint64))
    X = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [4.0, 3.0]])
    assert _as_set(*_merged(X)) == {(1.0, 2.0, 2.0), (1.0, 3.0, 1.0), (4.0, 3.0, 1.0)}


def test_equal_rows_meet_across_the_chunks():
    X = np.repeat(np.arange(3.0), [CHUNK_ROWS, CHUNK_ROWS + 1, 2])[:, None]
    assert _as_set(*_merged(X)) == {
        (0.0, float(CHUNK_ROWS)),
        (1.0, float(CHUNK_ROWS + 1)),
        (2.0, 2.0),
    }


# Missing values are equal to each other and to no number.
HOLES = np.where(_rng.uniform(size=(400, 3)) < 0.3, np.nan, _rng.integers(0, 3, (400, 3)))


def test_rows_that_miss_the_same_cells_are_equal():
    rows, weight = _merged(HOLES)
    distinct = {str(row): (HOLES.astype(str) == row.astype(str)).all(1).sum() for row in HOLES}
    assert {str(row): w for row, w in zip(rows, weight, strict=True)} == distinct


def test_the_bits_of_a_missing_value_do_not_matter():
    X = np.array([[1.0, np.nan], [1.0, -np.nan], [1.0, 0.0]])
    X[1, 1] = np.array([0x7FF8_0000_0000_0123], np.uint64).view(np.float64)[0]
    assert len(_merged(X)[0]) == 2


MADE_SPARSE = {
    "many zeros": _rng.integers(0, 3, (3000, 8)) * (_rng.uniform(size=(3000, 8)) < 0.2),
    "normal": COLUMNS["normal"],
    "missing values": HOLES,
    "no cell at all": np.zeros((20, 3)),
    "one row": np.ones((1, 4)),
}


@pytest.mark.parametrize("make", [csr_array, csr_matrix])
@pytest.mark.parametrize("kind", MADE_SPARSE)
def test_sparse_rows_are_merged_as_the_dense_ones(kind, make):
    X = MADE_SPARSE[kind].astype(float)
    rows, weight = _merged(make(X))
    expected, expected_weight = _merged(X)
    np.testing.assert_array_equal(rows.toarray(), expected)
    np.testing.assert_array_equal(weight, expected_weight)


# -- encoding -------------------------------------------------------------------------------------


def _cells(X, dtype=torch.float64):
    n = X.shape[1]
    ones = np.ones(X.shape[0])
    look = look_at(X, ones, n * [Column("x", "number")], ones)
    columns = fit_columns(
        X, look, kinds_of(n * ["gaussian"], n * ["number"], "auto", n * [0]), "columns"
    )
    return columns, encode_rows(X, columns, dtype, torch.device("cpu"))


def test_rows_encoded_in_chunks_are_those_encoded_at_once():
    X = np.random.default_rng(0).normal(size=(CHUNK_ROWS + 3, 2))
    columns, cells = _cells(X)
    x, observed = cells[:]
    np.testing.assert_array_equal(x.numpy(), columns.encode(X)[0])
    assert observed is None


def test_missing_cells_are_known_in_every_chunk():
    X = np.random.default_rng(0).normal(size=(CHUNK_ROWS + 3, 2))
    X[[5, -1], [0, 1]] = np.nan
    columns, cells = _cells(X)
    x, observed = cells[:]
    np.testing.assert_array_equal(observed.numpy(), ~np.isnan(X))
    assert bool(torch.isfinite(x).all())
    np.testing.assert_array_equal(x.numpy(), columns.encode(X)[0])


def test_cells_that_go_missing_after_the_columns_were_fitted_are_known():
    X = np.random.default_rng(0).normal(size=(2 * CHUNK_ROWS, 2))
    columns, _ = _cells(X)
    X[-1, 1] = np.nan  # in the second chunk, when the first one was full
    x, observed = encode_rows(X, columns, torch.float64, torch.device("cpu"))[:]
    np.testing.assert_array_equal(observed.numpy(), ~np.isnan(X))
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", MADE_SPARSE)
def test_sparse_rows_are_encoded_as_the_dense_ones(kind, dtype):
    X = csr_array(MADE_SPARSE[kind].astype(float))
    columns, sparse = _cells(X, dtype)
    dense = encode_rows(X.toarray(), columns, dtype, torch.device("cpu"))
    assert len(sparse) == len(dense) == X.shape[0]
    chosen = torch.arange(len(dense)).flip(0)[::3]
    for part in (slice(None), slice(1, 7), chosen):
        for one, other in zip(sparse[part], dense[part], strict=True):
            assert (one is None) == (other is None) or bool(other.all())
            assert one is None or torch.equal(one, other)
    assert torch.equal(sparse.take(chosen)[:][0], dense[chosen][0])


# -- splitting ------------------------------------------------------------------------------------

# (rows, fraction, rows held out)
PARTS = [
    (2, 0.1, 1),
    (2, 0.9, 1),
    (3, 0.9, 2),
    (5, 1e-9, 1),
    (10, 0.5, 5),
    (500, 0.1, 50),
    (501, 0.1, 50),
    (1000, 0.9, 900),
]


@pytest.mark.parametrize(("n_rows", "fraction", "expected"), PARTS)
def test_some_rows_are_held_out_and_some_are_not(n_rows, fraction, expected):
    held_out = hold_out(torch.ones(n_rows, dtype=torch.long), fraction, _generator())
    assert int(held_out.sum()) == expected < n_rows
    assert held_out.max() == 1


def test_equal_rows_are_held_out_by_their_number():
    copies = torch.tensor([1000, 10, 1, 500])
    held_out = hold_out(copies, 0.2, _generator())
    assert int(held_out.sum()) == 302
    assert bool((held_out <= copies).all())
    assert abs(int(held_out[0]) - 200) < 50 and abs(int(held_out[3]) - 100) < 40


@pytest.mark.parametrize(("n_rows", "n_folds"), [(2, 2), (3, 2), (5, 5), (7, 5), (499, 5)])
def test_folds_hold_every_row_out_once(n_rows, n_folds):
    parts = list(folds(torch.ones(n_rows, dtype=torch.long), n_folds, _generator()))
    assert len(parts) == n_folds
    assert torch.equal(sum(parts), torch.ones(n_rows, dtype=torch.long))
    sizes = [int(held_out.sum()) for held_out in parts]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1


def test_folds_deal_the_copies_of_a_row_out_in_turn():
    copies = torch.tensor([150, 7, 150, 1, 12])
    parts = torch.stack(list(folds(copies, 5, _generator())))  # (5, N)
    assert torch.equal(parts.sum(0), copies)
    assert int((parts.amax(0) - parts.amin(0)).max()) == 1


def test_a_split_parts_the_weight_of_a_row_by_its_copies():
    rows = Rows(
        DenseCells(torch.eye(3), None), torch.tensor([2.0, 0.5, 0.5]), torch.tensor([4, 1, 1])
    )
    kept, held_out = rows.split(torch.tensor([1, 0, 1]))
    assert kept[:].x.tolist() == torch.eye(3)[[0, 1]].tolist()
    assert held_out[:].x.tolist() == torch.eye(3)[[0, 2]].tolist()
    assert kept.weight.tolist() == pytest.approx([1.5, 0.5])  # of mean 1
    assert held_out.weight.tolist() == pytest.approx([1.0, 1.0])


def test_a_split_depends_on_its_generator_alone():
    for split in (
        lambda g: hold_out(torch.full((50,), 2), 0.2, g),
        lambda g: torch.cat(list(folds(torch.ones(50, dtype=torch.long), 5, g))),
    ):
        assert torch.equal(split(_generator(1)), split(_generator(1)))
        assert not torch.equal(split(_generator(1)), split(_generator(2)))


def _rows(x, weight):
    return Rows(DenseCells(x, x > 2.0), weight)


def test_taken_rows_weigh_one_on_average():
    rows = _rows(torch.arange(6.0)[:, None], torch.tensor([0.5, 0.5, 2.0, 1.0, 1.0, 1.0]))
    taken = rows.take(torch.tensor([2, 0]))
    assert taken[:].x[:, 0].tolist() == [2.0, 0.0]
    assert taken.weight.tolist() == pytest.approx([1.6, 0.4])


@pytest.mark.parametrize("step", [1, 2, 3, 6])
def test_every_so_many_rows_and_chunks_keep_cells_and_weights_together(step):
    x = torch.arange(7.0)[:, None]
    few = _rows(x, x[:, 0] / 3.0).every(step)
    batches_of_it = list(few.chunks(CHUNK_ROWS**3))  # so wide that a chunk is one row
    assert len(batches_of_it) == len(few) == len(x[::step])
    joined = torch.cat([batch.x for batch in batches_of_it])
    assert torch.equal(joined, x[::step])
    weight = torch.cat([batch.weight for batch in batches_of_it])
    assert torch.equal(weight, few.weight)
    torch.testing.assert_close(weight / weight.mean(), x[::step, 0] / x[::step].mean())
    assert all(torch.equal(batch.observed, batch.x > 2.0) for batch in batches_of_it)


# -- one epoch ------------------------------------------------------------------------------------

# They sum to the number of rows.
WEIGHTS = {
    "integers": torch.tensor([3.0, 1.0, 0.0, 0.0, 1.0]),
    "halves": torch.tensor([0.5, 1.5, 2.5, 0.5, 0.0, 1.0]),
    "any": (w := torch.rand(200, generator=_generator(), dtype=torch.float64)) / w.mean(),
    "one row holds nearly all": torch.tensor([9.91] + 9 * [0.01], dtype=torch.float64),
}


def _counts(weight, seed):
    return torch.bincount(epoch_order(weight, _generator(seed)), minlength=len(weight))


@pytest.mark.parametrize("value", [1.0, 0.3])
def test_equal_weights_give_a_permutation(value):
    order = epoch_order(torch.full((100,), value), _generator())
    assert sorted(order.tolist()) == list(range(100))
    assert order.tolist() != list(range(100))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_comes_as_often_as_it_weighs_rounded_down_or_up(kind):
    weight = WEIGHTS[kind]
    for seed in range(50):
        counts = _counts(weight, seed)
        assert counts.sum() == len(weight)
        assert (counts >= weight.floor()).all() and (counts <= weight.ceil()).all()


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_row_comes_as_often_as_it_weighs_over_many_epochs(kind):
    weight, n_epochs = WEIGHTS[kind], 2000
    mean = sum(_counts(weight, seed) for seed in range(n_epochs)) / n_epochs
    # A count is one of two neighbouring integers: its variance is at most a quarter.
    assert float((mean - weight).abs().max()) < 4.5 * 0.5 / n_epochs**0.5


def test_drawn_rows_come_in_random_order():
    order = epoch_order(WEIGHTS["any"], _generator())
    assert order.tolist() != sorted(order.tolist())


# (rows, batch size, sizes of the batches)
SIZES = [
    (9, 4, [4, 4, 1]),
    (8, 4, [4, 4]),
    (7, 4, [4, 3]),
    (5, 4, [4, 1]),
    (4, 4, [4]),
    (3, 4, [3]),
    (1, 4, [1]),
    (3, 1, [1, 1, 1]),
]


@pytest.mark.parametrize(("n_rows", "batch_size", "sizes"), SIZES)
def test_batches_hold_every_row_whatever_is_left_for_the_last(n_rows, batch_size, sizes):
    rows = _rows(torch.arange(float(n_rows))[:, None], torch.ones(n_rows))
    epoch = list(batches(rows, batch_size, _generator()))
    assert [len(batch.x) for batch in epoch] == sizes
    assert sorted(torch.cat([b.x for b in epoch])[:, 0].tolist()) == list(range(n_rows))
    assert all((batch.weight == 1.0).all() for batch in epoch)
    assert all(torch.equal(batch.observed, batch.x > 2.0) for batch in epoch)


def test_weights_are_given_on_when_all_rows_fit_and_are_drawn_by_otherwise():
    rows = _rows(torch.arange(5.0)[:, None], WEIGHTS["integers"])
    (whole,) = batches(rows, 5, _generator())
    assert torch.equal(whole.weight, rows.weight) and torch.equal(whole.x, rows.cells.x)
    drawn = list(batches(rows, 2, _generator()))
    assert all((batch.weight == 1.0).all() for batch in drawn)
    assert sorted(torch.cat([b.x for b in drawn])[:, 0].tolist()) == [0.0, 0.0, 0.0, 1.0, 4.0]


def test_rows_that_all_fit_need_no_randomness():
    rows = _rows(torch.ones(4, 2), torch.ones(4))
    generator = _generator()
    before = generator.get_state()
    list(batches(rows, 4, generator))
    assert torch.equal(generator.get_state(), before)


# -- very many rows -------------------------------------------------------------------------------


def _few_are_many(monkeypatch):
    monkeypatch.setattr(duplicates, "MANY_ROWS", 1000)
    monkeypatch.setattr(duplicates, "SOME_ROWS", 500)
    monkeypatch.setattr(duplicates, "CHUNK_ROWS", 50)


def test_very_many_distinct_rows_are_shuffled_in_a_copy_and_not_sorted(monkeypatch):
    _few_are_many(monkeypatch)
    monkeypatch.setattr(duplicates, "merge_duplicates", None)
    X, weight = np.random.default_rng(0).normal(size=(2000, 3)), np.arange(2000.0)
    rows, counted, copies = duplicates.merged(X, weight)
    assert not np.shares_memory(rows, X)
    order = np.argsort(counted)
    np.testing.assert_array_equal(rows[order], X[1:])  # the first weighs nothing
    np.testing.assert_array_equal(counted[order], weight[1:])
    np.testing.assert_array_equal(copies[order], weight[1:])
    assert abs(np.corrcoef(counted, np.arange(1999))[0, 1]) < 0.1
    assert duplicates.merged(X, np.ones(2000))[2] is None


@pytest.mark.parametrize("again", [lambda X: np.repeat(X, 2, axis=0), lambda X: np.r_[X, X]])
@pytest.mark.parametrize("make", [np.asarray, csr_array])
def test_very_many_rows_that_come_twice_are_merged(again, make, monkeypatch):
    _few_are_many(monkeypatch)
    X = np.random.default_rng(0).normal(size=(1000, 3))
    rows, weight, copies = duplicates.merged(make(again(X)), np.ones(2000))
    assert rows.shape[0] == 1000 and (weight == 2.0).all() and (copies == 2).all()
