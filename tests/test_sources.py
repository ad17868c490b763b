"""Rows that are not in memory, or not in one piece, make the model that they make in memory."""

import os
import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.feather
import pyarrow.parquet
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skvae._parquet
import skvae._preparing
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, to_parquet
from skvae._callbacks import Listeners
from skvae._table import of_arrow, sources, spool
from skvae._training.rows import BLOCK_ROWS, shuffled

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:.*inactive, with less than"),
]


def _frame(n_rows=560, seed=0):
    """Numbers, whole numbers, levels, truth values and dates, some of them missing."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, 2))
    number = z @ rng.normal(size=(2, 3)) + 0.3 * rng.normal(size=(n_rows, 3))
    frame = pd.DataFrame(number, columns=["a", "b", "c"])
    frame["count"] = rng.poisson(np.exp(0.5 * z[:, 0]))
    frame["town"] = np.array(["x", "y", "z"])[(z[:, 1] > 0.5) + 1 * (z[:, 0] > 0.5)]
    frame["kind"] = pd.Categorical(np.where(z[:, 0] > 0, "p", "q"))
    frame["is"] = z[:, 1] > 0
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta((10 * z[:, 1]).round(), "D")
    frame.loc[rng.random(n_rows) < 0.2, "b"] = np.nan
    frame.loc[rng.random(n_rows) < 0.1, "town"] = None
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.fixture(scope="module")
def rows(folder):
    """The frame as Parquet has it, in one file, in a folder of three, and in an Arrow file."""
    _frame().to_parquet(folder / "rows.parquet", row_group_size=150)
    frame = pd.read_parquet(folder / "rows.parquet")
    (folder / "parts").mkdir()
    for number, part in enumerate([frame[:10], frame[10:500], frame[500:]]):
        part.to_parquet(folder / "parts" / f"{number}.parquet")
    pa.feather.write_feather(pa.Table.from_pandas(frame), folder / "rows.arrow")
    return frame


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(sources, "PART_ROWS", (30, 110))


def copied(table, weight):
    return np.array(table), weight, None


def assert_same(found, expected):
    """Hold that two are the same but for the rounding of products of more or fewer rows."""
    # Scores are nats, and those near 0 are sums of large terms: 1e-9 of the score would be less
    # than what the last step of a search for a mode leaves.
    assert_allclose(found, expected, rtol=1e-9, atol=2e-9)


def _vae(**params):
    small = {"max_iter": 1, "random_state": 0, "hidden_layer_sizes": (4,)}
    return VAETransformer(**(small | params))


def _detector(**params):
    vae = {"max_iter": 0, "hidden_layer_sizes": (4,), "random_state": 0}
    return VAEOutlierDetector(vae, support_fraction=1.0, random_state=0, **params)


@pytest.fixture(scope="module")
def in_memory(rows):
    return _vae().fit(rows)


SOURCES = {
    "a path": lambda folder, frame: str(folder / "rows.parquet"),
    "a Path": lambda folder, frame: folder / "rows.parquet",
    "a folder": lambda folder, frame: folder / "parts",
    "a pattern": lambda folder, frame: str(folder / "parts" / "*.parquet"),
    "an Arrow file": lambda folder, frame: folder / "rows.arrow",
    "a data set": lambda folder, frame: pa.dataset.dataset(folder / "parts"),
    "a table": lambda folder, frame: pa.Table.from_pandas(frame),
    "a reader": lambda folder, frame: pa.Table.from_pandas(frame).to_reader(90),
    "a list": lambda folder, frame: [frame[:300], frame[300:301], frame[301:]],
    "a list of files": lambda folder, frame: sorted((folder / "parts").glob("*.parquet")),
    "a list of tables": lambda folder, frame: [
        pa.Table.from_pandas(frame[:300]),
        *pa.Table.from_pandas(frame[300:]).to_batches(),
    ],
    "a scanner": lambda folder, frame: pa.dataset.dataset(folder / "parts").scanner(),
    "a generator": lambda folder, frame: (frame[i : i + 99] for i in range(0, len(frame), 99)),
    "a function": lambda folder, frame: lambda: iter([frame[:510], frame[510:]]),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_makes_the_model_of_its_rows_in_memory(kind, rows, folder, in_memory):
    vae = _vae().fit(SOURCES[kind](folder, rows))
    assert_array_equal(vae.transform(rows), in_memory.transform(rows))
    assert vae.validation_scores_ == in_memory.validation_scores_
    assert vae.model_.schema.columns == in_memory.model_.schema.columns
    assert_array_equal(vae.feature_names_in_, in_memory.feature_names_in_)
    pd.testing.assert_frame_equal(
        vae.sample(5, random_state=0), in_memory.sample(5, random_state=0)
    )


def test_a_lazy_frame_makes_the_model_of_its_frame(rows, folder):
    lazy = pl.scan_parquet(folder / "rows.parquet")
    vae, expected = _vae().fit(lazy), _vae().fit(lazy.collect())
    assert_same(vae.transform(lazy), expected.transform(lazy.collect()))
    assert vae.sample(3, random_state=0).schema == expected.sample(3, random_state=0).schema


@pytest.mark.parametrize("kind", [list, iter])
def test_parts_may_be_arrays(kind):
    X = np.random.default_rng(0).normal(size=(300, 4))
    vae = _vae().fit(kind([X[:100], X[100:]]))
    assert_array_equal(vae.transform(X), _vae().fit(X).transform(X))


# -- files ----------------------------------------------------------------------------------------

FOLDERS = {
    "whole numbers, then others": ({"a": range(40)}, {"a": np.arange(60) + 0.5}),
    "a column of the second file": ({}, {"b": np.arange(60.0)}),
    "nothing, then levels": ({"b": None}, {"b": ["x", "y"] * 30}),
    "columns in another order": ({"b": 1.0, "c": range(40)}, {"c": range(60), "b": 2.0}),
}


def _numbers(n_rows, columns):
    frame = pd.DataFrame({"x": np.random.default_rng(n_rows).normal(size=n_rows)})
    return frame.assign(**columns)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_read_with_all_columns_of_all_its_files(name, tmp_path):
    parts = [_numbers(*both) for both in zip((40, 60), FOLDERS[name], strict=True)]
    for number, part in enumerate([parts[0][:0], parts[0], parts[1][:0], parts[1]]):
        part.to_parquet(tmp_path / f"{number}.parquet")
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "README.txt").write_text("what else stands there")
    vae, whole = _vae(max_iter=0).fit(tmp_path), pd.concat(parts, ignore_index=True)
    expected = _vae(max_iter=0).fit(whole)
    assert vae.model_.schema.columns == expected.model_.schema.columns
    assert_same(vae.transform(tmp_path), expected.transform(whole))


def test_partitions_are_categories_as_pandas_has_them(tmp_path):
    frame = _numbers(90, {"town": ["x", "y", "z"] * 30, "year": 2024})
    frame.to_parquet(tmp_path / "rows", partition_cols=["year", "town"])
    whole = pd.read_parquet(tmp_path / "rows")
    vae, expected = _vae(max_iter=0).fit(tmp_path / "rows"), _vae(max_iter=0).fit(whole)
    pd.testing.assert_frame_equal(vae.sample(9, random_state=0), expected.sample(9, random_state=0))
    pattern = str(tmp_path / "rows" / "year=*" / "*" / "*.parquet")
    assert_same(vae.transform(pattern), expected.transform(whole))


def test_rows_that_a_data_set_leaves_out_are_left_out(folder, rows):
    data = pa.dataset.dataset(folder / "parts").filter(pa.dataset.field("a") > 0)
    vae, expected = (_vae(max_iter=0).fit(X) for X in (data, rows[rows["a"] > 0]))
    assert_array_equal(vae.transform(rows), expected.transform(rows))


def test_a_row_group_is_read_page_by_page_and_no_further_than_asked(tmp_path):
    table = pa.table({f"x{n}": np.random.default_rng(n).normal(size=200_000) for n in range(8)})
    pa.parquet.write_table(table, tmp_path / "rows.parquet", use_dictionary=False)
    source, before = sources.source_of(tmp_path / "rows.parquet"), pa.total_allocated_bytes()
    parts = source.parts()
    next(parts)
    assert pa.total_allocated_bytes() - before < table.nbytes / 4
    del parts
    assert pa.total_allocated_bytes() <= before


def test_the_cells_of_a_frame_of_numbers_are_those_of_its_columns():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=60), "n": rng.integers(-9, 2**60, 60), "b": True})
    frame["b"] = rng.random(60) < 0.5
    frame["f"] = rng.normal(size=60).astype(np.float32)
    frame.loc[::7, "x"] = np.nan
    vae = _vae(max_iter=0).fit(frame)
    assert_array_equal(vae.transform(frame), vae.transform(frame.astype(object)))
    frame.loc[5, "f"] = np.inf
    with pytest.raises(ValueError, match="Column 'f' needs finite numbers; row 5 holds inf"):
        vae.transform(frame)


@pytest.fixture
def large(monkeypatch):
    """Let every table be a large one, kept in a file, and let no rows be merged in memory."""
    monkeypatch.setattr(
        skvae._preparing, "merged", lambda table, weight: (table.copy(), weight, None)
    )

    def fit(vae, X, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(spool, "MOST_CELLS", 10)
            return vae.fit(X, **kwargs)

    return fit


CONFIGURATIONS = {
    "default": {},
    "shapes": {"likelihood": "normal_scores"},
    "holes": {"missing": "model"},
    "per column": {"noise": "per_column"},
    "evidence": {"n_components": "evidence", "categorical_features": ["town", "kind", "count"]},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_table_in_a_file_makes_the_model_of_one_in_memory(name, rows, folder, large):
    expected = _vae(**CONFIGURATIONS[name]).fit(rows)
    vae = large(_vae(**CONFIGURATIONS[name]), folder / "rows.parquet")
    assert_allclose(vae.transform(rows), expected.transform(rows), rtol=1e-6, atol=1e-9)
    assert_allclose(vae.validation_scores_, expected.validation_scores_, rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "mode"), [(np.float32, "r"), (np.float64, "c"), (np.int16, "r+"), (bool, "r")]
)
def test_a_memmap_is_read_from_its_file_and_stays_as_it_is(dtype, mode, tmp_path, large):
    X = (np.random.default_rng(0).normal(size=(600, 5)) * 3).astype(dtype)
    np.save(tmp_path / "X.npy", X)
    before = (tmp_path / "X.npy").read_bytes()
    mapped = np.load(tmp_path / "X.npy", mmap_mode=mode)
    vae = large(_vae(), mapped)
    assert_allclose(vae.transform(mapped), _vae().fit(X).transform(X), rtol=1e-5, atol=1e-7)
    assert_array_equal(mapped, X)
    mapped.flush()
    assert (tmp_path / "X.npy").read_bytes() == before


def test_infinity_in_a_memmap_is_named(tmp_path, large):
    X = np.ones((600, 5))
    X[123, 2] = np.inf
    np.save(tmp_path / "X.npy", X)
    with pytest.raises(
        ValueError,
        match="Column 2 needs finite numbers; row 123 holds inf: Input X contains infinity",
    ):
        large(_vae(), np.load(tmp_path / "X.npy", mmap_mode="r"))


@pytest.mark.parametrize("is_large", [False, True])
def test_weights_count_as_in_memory(is_large, rows, folder, large):
    weight = np.random.default_rng(1).integers(0, 3, size=len(rows)).astype(float)
    expected = _vae().fit(rows, sample_weight=weight)
    fit = large if is_large else lambda vae, X, **kwargs: vae.fit(X, **kwargs)
    vae = fit(_vae(), folder / "rows.parquet", sample_weight=weight)
    assert_allclose(vae.transform(rows), expected.transform(rows), rtol=1e-6, atol=1e-9)


def test_partial_fit_and_warm_starts_go_on_from_a_source(rows, folder):
    path = folder / "rows.parquet"
    for method, more in [("partial_fit", "partial_fit"), ("fit", "fit"), ("partial_fit", "fit")]:
        expected, vae = (_vae(warm_start=True, max_iter=1) for _ in "ab")
        for one, X in [(expected, rows), (vae, path)]:
            getattr(getattr(one, method)(X), more)(X)
        assert_array_equal(vae.transform(rows), expected.transform(rows))


def test_methods_take_rows_part_by_part(rows, folder, in_memory):
    path = folder / "rows.parquet"
    assert_same(in_memory.transform(path), in_memory.transform(rows))
    parts = [rows[:40], rows[40:60]]
    scores, diagnostics = in_memory.score_samples(parts, return_diagnostics=True)
    expected = in_memory.score_samples(rows[:60])
    assert_allclose(scores, expected, rtol=1e-9)
    assert diagnostics["pareto_k"].shape == scores.shape
    assert in_memory.score(parts) == pytest.approx(expected.mean())
    assert_allclose(in_memory.score_features(path), in_memory.score_features(rows), rtol=1e-9)
    codes = VAETransformer(2, max_iter=0).set_output(transform="pandas").fit_transform(path)
    assert codes.shape == (len(rows), 2)
    assert codes.index.equals(pd.RangeIndex(len(rows)))


def test_a_detector_takes_a_source_as_its_rows(rows, folder):
    path = folder / "rows.parquet"
    expected, detector = _detector().fit(rows), _detector().fit(path)
    assert_same(detector.score_samples(path), expected.score_samples(rows))
    assert_array_equal(detector.p_values(path), expected.p_values(rows))
    for fdr in (None, 0.1):
        for one in (detector, expected):
            one.set_params(fdr=fdr)
        assert_array_equal(detector.predict(path), expected.predict(rows))
    assert_array_equal(detector.fit_predict(path), expected.predict(rows))


def test_a_detector_of_very_many_rows_is_fitted_to_some_and_says_so(rows, folder, monkeypatch):
    monkeypatch.setattr(spool, "MOST_CELLS", 150 * rows.shape[1])
    with pytest.warns(
        UserWarning, match=r"Detector is fitted to one in 4 of the 560 rows of .*parquet"
    ):
        detector = _detector().fit(folder / "rows.parquet")
    monkeypatch.undo()
    expected = _detector().fit(rows[::4])
    assert_array_equal(detector.score_samples(rows), expected.score_samples(rows))


@pytest.mark.parametrize("drawn", [False, True])
def test_an_imputer_takes_a_source_as_its_rows(drawn, rows):
    rows = rows[:120]
    path = [rows[:70], rows[70:]]
    params = {"max_iter": 0}, {"random_state": 0, "sample_posterior": drawn}
    expected = VAEImputer(params[0], **params[1]).fit(rows)
    imputer = VAEImputer(params[0], **params[1]).fit(path)
    filled = imputer.transform(path)
    assert not filled.isna().any().any()
    if not drawn:
        pd.testing.assert_frame_equal(filled, expected.transform(rows))
        return
    filled = imputer.transform([rows[:100], rows[:100]])
    first, second = filled[:100], filled[100:].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, expected.transform(rows[:100]))
    missing = rows["b"][:100].isna()
    assert (first["b"] != second["b"])[missing].all()  # each part has noise of its own


# -- what a column's parts hold -------------------------------------------------------------------


def _parts_and_whole(*columns):
    parts = [pd.DataFrame({"a": np.arange(float(len(c))), "b": c}) for c in columns]
    return parts, pd.concat(parts, ignore_index=True)


COLUMNS = {
    "a level in one part only": (["x", "y"] * 20, ["x", "z"] * 20),
    "levels of dictionaries": (pd.Categorical(["x", "y"] * 20), pd.Categorical(["z", "y"] * 20)),
    "nothing in one part": ([None] * 40, ["x", "y"] * 20),
    "holes in one part": (list(range(40)), [1.0, np.nan] * 20),
    "strays in one part": (list(map(float, range(100))), [*map(float, range(39)), "?"]),
    "truth values": ([True, False] * 20, [True, None] * 20),
    "no value at all": ([np.nan] * 40, [np.nan] * 40),
    "numbers as text": (["1", "2"] * 20, ["3", "4"] * 20),
    "ids": ([f"id{n}" for n in range(60)], [f"id{n}" for n in range(60, 120)]),
    "ordered levels": tuple(
        pd.Categorical(list("xy") * 20, list("zyx"), ordered=True) for _ in "ab"
    ),
}


@pytest.mark.filterwarnings("ignore:Column")
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_what_all_its_parts_make_it(name):
    parts, whole = _parts_and_whole(*COLUMNS[name])
    if name == "levels of dictionaries":
        whole["b"] = whole["b"].astype("category")
    vae, expected = _vae(max_iter=0).fit(parts), _vae(max_iter=0).fit(whole)
    assert vae.model_.schema.columns == expected.model_.schema.columns
    assert_array_equal(vae.transform(whole), expected.transform(whole))


def test_rare_levels_are_counted_over_all_parts():
    rng = np.random.default_rng(0)
    parts, whole = _parts_and_whole(*(list(rng.choice(list("abcdef"), 50)) for _ in range(3)))
    vae, expected = (_vae(max_iter=0, max_categories=4).fit(X) for X in (parts, whole))
    assert vae.model_.schema.columns == expected.model_.schema.columns


@pytest.mark.parametrize("columns", [["b"], ["a", "b"]])
def test_numbers_of_parts_may_be_asked_for_as_categories(columns):
    parts, whole = _parts_and_whole([3.0, 1.0] * 20, [2.0, 1.0] * 20)
    vae, expected = (_vae(max_iter=0, categorical_features=columns).fit(X) for X in (parts, whole))
    assert vae.model_.schema.columns == expected.model_.schema.columns


# -- errors ---------------------------------------------------------------------------------------


def _raises(error, match, X, **params):
    vae = _vae(**params)
    with pytest.raises(error, match=match):
        vae.fit(X)
    assert not hasattr(vae, "model_")


def test_a_path_without_rows_is_refused(tmp_path):
    _raises(FileNotFoundError, "there is no such file or folder. Pass rows", "nowhere.parquet")
    _raises(FileNotFoundError, "there is no such file", str(tmp_path / "*.parquet"))
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    match = "no file or folder that can be read part by part: .* end in .parquet, .*pd.read_csv"
    _raises(ValueError, match, tmp_path / "rows.csv")


def test_files_that_do_not_go_together_are_refused(tmp_path):
    _numbers(9, {"b": 1.0}).to_parquet(tmp_path / "0.parquet")
    _numbers(9, {"b": "x"}).to_parquet(tmp_path / "1.parquet")
    match = "be of one type in all of them. Arrow says: .* Field b has incompatible types"
    _raises(ValueError, match, tmp_path)
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], names=["a", "a"])
    pa.parquet.write_table(twice, tmp_path / "twice.parquet")
    match = "twice.parquet must be whole, and each column must have a name of its own"
    _raises(ValueError, match, tmp_path / "twice.parquet")
    (tmp_path / "rows.arrow").write_bytes(b"")
    _raises(ValueError, "holds files of several formats: 0.parquet, rows.arrow", tmp_path)


def test_a_file_that_goes_while_it_is_read_is_named(folder, rows, in_memory, tmp_path):
    for number in (0, 1):
        rows.to_parquet(tmp_path / f"{number}.parquet")
    source = sources.source_of(tmp_path)
    (tmp_path / "1.parquet").write_bytes((tmp_path / "1.parquet").read_bytes()[:3000])
    with pytest.raises(Exception, match=r"corrupt|Corrupt|Unexpected end") as raised:
        in_memory.transform(source)
    assert "1.parquet was read" in str(raised.value.__notes__)


def test_methods_that_take_rows_in_memory_say_so(folder, in_memory):
    with pytest.raises(TypeError, match=r"this method takes rows that are in memory. Pass such"):
        in_memory.component_effects(folder / "rows.parquet")
    with pytest.raises(TypeError, match=r"X is a FileSystemDataset of pyarrow, whose rows are not"):
        in_memory.component_effects(pa.dataset.dataset(folder / "parts"))


def test_parts_that_are_no_tables_are_refused():
    _raises(
        TypeError,
        "or arrays of two dimensions. Part 1 of the iterator is",
        iter([pd.DataFrame({"a": [1.0]}), [2]]),
    )
    _raises(ValueError, "X must have rows, but nothing came from the iterator", iter([]))
    frame, once = pd.DataFrame({"a": [1.0, 2.0]}), iter([pd.DataFrame({"a": [1.0, 2.0]})])
    _raises(ValueError, "An iterator can be read once: make it anew", lambda: once)
    _raises(TypeError, "must return an iterable .* returned a NoneType", lambda: None)
    match = "must be of one kind. Part 1 of the list of frames is a polars DataFrame, and part 0 a"
    _raises(TypeError, match, [frame, pl.from_pandas(frame)])
    _raises(
        TypeError, "is a ndarray, and part 0 a pandas DataFrame", iter([frame, np.ones((2, 1))])
    )


def test_an_error_says_from_which_row_on_it_counts():
    frame = pd.DataFrame({"a": np.arange(200.0), "b": np.arange(200.0)})
    frame.loc[150, "b"] = np.inf
    match = r"row 50 holds inf: (.|\n)*Rows are counted from row 100 of the list of frames on\."
    _raises(ValueError, match, [frame[:100], frame[100:]])
    vae = _vae(max_iter=0).fit(frame[:100])
    with pytest.raises(ValueError, match=match):
        vae.transform([frame[:100], frame[100:]])


def test_other_columns_in_a_later_part_are_refused():
    parts = [pd.DataFrame({"a": [1.0, 2.0], "b": 0.0}), pd.DataFrame({"a": [1.0], "c": 0.0})]
    _raises(ValueError, r"feature names should match(.|\n)*counted from row 2 of the list", parts)


def test_levels_among_numbers_and_dates_beside_others_are_refused():
    parts, _ = _parts_and_whole([1.0, 2.0] * 20, ["x", "y"] * 20)
    match = r"Column 'b' holds numbers in some parts of X and levels in others \('x', 'y'\)"
    _raises(ValueError, match, parts)
    parts, _ = _parts_and_whole([1.0, 2.0], pd.to_datetime(["2024-01-01", "2024-01-02"]))
    _raises(ValueError, "Column 'b' holds dates or times beside other values", parts)
    own = [pd.Categorical(["x", "y"], levels, ordered=True) for levels in (["x", "y"], ["y", "x"])]
    parts, _ = _parts_and_whole(*own)
    _raises(
        ValueError, r"The parts of X have other ordered levels in column 'b': \['x', 'y'\]", parts
    )


def test_a_column_of_too_many_levels_is_refused(monkeypatch):
    monkeypatch.setattr("skvae._table.tally.MOST_LEVELS", 50)
    parts, _ = _parts_and_whole(*COLUMNS["ids"])
    _raises(ValueError, "Column 'b' has more than 50 levels", parts)


def test_a_source_that_changes_meanwhile_is_refused():
    frame, calls = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 3))), []

    def parts():
        calls.append(1)
        return iter([frame[:30], frame[30 : 50 - len(calls)]])

    _raises(ValueError, "The source X has changed while it was read: the function's parts", parts)


def test_pyarrow_is_asked_for_by_the_name_of_its_extra(monkeypatch, tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    match = r"needs pyarrow, which is not installed. Use pip install 'skvae\[parquet\]'"
    _raises(ImportError, match, tmp_path / "rows.parquet")
    with pytest.raises(ImportError, match="Writing Parquet files needs pyarrow"):
        of_arrow.arrow_of({})


def test_a_full_disk_is_named(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"has no room for a table of 0.0 GB. Set .* TMPDIR"):
        spool.spooled((100, 10), np.float32)


def test_a_table_in_a_file_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = spool.spooled((100, 10), np.float32)
    table[:] = 1.0
    assert list(tmp_path.iterdir()) == []
    assert float(table.sum()) == 1000.0


# -- the order of rows in a file ------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [1, 1000, 5 * BLOCK_ROWS + 7])
@pytest.mark.parametrize("window", [0, 2 * BLOCK_ROWS, 3 * BLOCK_ROWS])
def test_an_epoch_has_every_row_once(n_rows, window):
    order = shuffled(n_rows, window, torch.Generator().manual_seed(0))
    assert_array_equal(np.sort(order), np.arange(n_rows))


def test_rows_that_are_read_together_stand_in_few_places():
    window = 4 * BLOCK_ROWS
    order = shuffled(64 * BLOCK_ROWS, window, torch.Generator().manual_seed(0))
    blocks = [len(set((some // BLOCK_ROWS).tolist())) for some in order.split(window)]
    assert max(blocks) == 4  # of 64
    assert np.corrcoef(order, np.arange(len(order)))[0, 1] < 0.5  # and blocks in any order


# -- what is found, written to a file -------------------------------------------------------------


def test_codes_and_scores_are_written_in_the_order_of_rows(rows, folder, in_memory, tmp_path):
    methods = ["transform", "score_samples", "elbo"]
    some, parts = rows[:60], [rows[:40], rows[40:60]]
    to_parquet(in_memory, parts, tmp_path / "found.parquet", method=methods)
    found = pd.read_parquet(tmp_path / "found.parquet")
    names = in_memory.get_feature_names_out()
    assert_same(found[names], in_memory.transform(some))
    assert_allclose(found["score"], in_memory.score_samples(some), rtol=1e-9)
    assert_allclose(found["elbo"], in_memory.score_samples(some, method="elbo"), rtol=1e-9)
    assert [p.name for p in tmp_path.iterdir()] == ["found.parquet"]
    to_parquet(in_memory, some, tmp_path / "found.parquet")  # frames in memory, too; replaced
    assert_same(pd.read_parquet(tmp_path / "found.parquet"), found[names])


class Killed(BaseException):
    """What ends a run."""


def test_a_run_that_was_killed_leaves_no_file_and_the_next_goes_on(
    rows, folder, in_memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(skvae._parquet, "ROWS_A_FILE", 200)
    target, read = tmp_path / "codes.parquet", []
    transform = VAETransformer.transform

    def dying(self, X):
        read.append(len(X))
        if sum(read) > 400:
            raise Killed
        return transform(self, X)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(VAETransformer, "transform", dying)
        to_parquet(in_memory, folder / "rows.parquet", target)
    assert not target.exists()
    again = []
    monkeypatch.setattr(
        VAETransformer, "transform", lambda self, X: again.append(len(X)) or transform(self, X)
    )
    to_parquet(in_memory, folder / "rows.parquet", target)
    assert sum(again) <= len(rows) - 200  # what was written is not done again
    assert_same(pd.read_parquet(target), transform(in_memory, rows))
    assert [p.name for p in tmp_path.iterdir()] == ["codes.parquet"]


def test_a_run_over_one_table_writes_what_it_has_now_and_then(
    rows, in_memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(skvae._parquet, "SECONDS_A_FILE", 0.0)
    monkeypatch.setattr(skvae._parquet, "ROWS_A_SLICE", 100)
    target, transform, n_read = tmp_path / "codes.parquet", VAETransformer.transform, []

    def dying(self, X):
        n_read.append(len(X))
        if sum(n_read) > 300:
            raise Killed
        return transform(self, X)

    monkeypatch.setattr(VAETransformer, "transform", dying)
    with pytest.raises(Killed):
        to_parquet(in_memory, rows, target)
    n_read[:] = [300 - len(rows)]  # of the next run, all but the first 300 rows are too few
    to_parquet(in_memory, rows, target)
    assert sum(n_read) == 0
    assert_same(pd.read_parquet(target), transform(in_memory, rows))


def test_other_rows_in_memory_do_not_go_on_with_the_parts_of_a_run(
    rows, in_memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(skvae._parquet, "SECONDS_A_FILE", 0.0)
    monkeypatch.setattr(skvae._parquet, "join_parquet", lambda files, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        to_parquet(in_memory, rows, tmp_path / "codes.parquet")
    monkeypatch.undo()
    other = rows[::-1]
    with pytest.warns(UserWarning, match="holds parts of another run"):
        to_parquet(in_memory, other, tmp_path / "codes.parquet")
    assert_same(pd.read_parquet(tmp_path / "codes.parquet"), in_memory.transform(other))


def test_a_table_that_is_refused_leaves_no_folder(rows, in_memory, tmp_path):
    with pytest.raises(ValueError, match="feature names"):
        to_parquet(in_memory, rows.iloc[:, :2], tmp_path / "codes.parquet")
    assert not list(tmp_path.iterdir())


def test_parts_of_another_run_are_not_taken(rows, folder, in_memory, tmp_path):
    (tmp_path / "codes.parquet.parts").mkdir()
    (tmp_path / "codes.parquet.parts" / "of.txt").write_text("another")
    with pytest.warns(UserWarning, match="holds parts of another run"):
        to_parquet(in_memory, rows, tmp_path / "codes.parquet")
    assert_array_equal(pd.read_parquet(tmp_path / "codes.parquet"), in_memory.transform(rows))


def test_methods_that_cannot_be_written_are_refused(rows, in_memory, tmp_path):
    with pytest.raises(
        ValueError, match=r"is found by its methods \['transform', .*method='nope' instead"
    ):
        to_parquet(in_memory, rows, tmp_path / "a.parquet", method="nope")
    detector = _detector(fdr=0.1).fit(rows)
    with pytest.raises(ValueError, match="With fdr, the label of a row depends on all rows"):
        to_parquet(detector, rows, tmp_path / "a.parquet", method="predict")
    to_parquet(detector, rows, tmp_path / "a.parquet", method=["p_values", "score_samples"])
    found = pd.read_parquet(tmp_path / "a.parquet")
    assert list(found) == ["p_value", "score"]
    assert_array_equal(found["p_value"], detector.p_values(rows))


def test_a_file_is_not_written_over_what_is_read(folder, rows, in_memory, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path, tmp_path / "rows.parquet"):
        with pytest.raises(ValueError, match=r"rows.parquet is one of the files of rows, or would"):
            to_parquet(in_memory, path, tmp_path / "rows.parquet")
    with pytest.raises(IsADirectoryError, match=r"is written to one file, but .* is a folder"):
        to_parquet(in_memory, rows, tmp_path)
    for method in ([], 3):
        with pytest.raises(ValueError, match=rf"Got method={re.escape(str(method))} instead"):
            to_parquet(in_memory, rows, tmp_path / "a.parquet", method=method)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.parquet"]


def test_a_keyboard_interrupt_keeps_the_best_of_a_fit_to_a_source(folder, monkeypatch):
    hear = Listeners.hear

    def stopping(self, epoch, fitted):
        if epoch.number == 2:
            raise KeyboardInterrupt
        return hear(self, epoch, fitted)

    monkeypatch.setattr(Listeners, "hear", stopping)
    with pytest.warns(UserWarning, match="interrupt"):
        vae = _vae(max_iter=9).fit(folder / "rows.parquet")
    assert vae.n_iter_ == 2


def test_a_search_and_a_scaler_refuse_a_path(folder, rows):
    for path in (folder / "rows.parquet", str(folder / "rows.parquet")):
        with pytest.raises((TypeError, ValueError)):
            GridSearchCV(_vae(max_iter=0), {"beta": [1.0]}, cv=2).fit(path)
        with pytest.raises((TypeError, ValueError)):
            make_pipeline(StandardScaler(), _vae()).fit(path)
    pipeline = make_pipeline(_vae(max_iter=0)).fit(folder / "rows.parquet")
    assert clone(pipeline).fit_transform(folder / "rows.parquet").shape[0] == len(rows)


def test_a_fitted_model_of_a_source_is_pickled_without_it(folder, rows):
    vae = _vae(max_iter=0).fit(folder / "rows.parquet")
    assert len(pickle.dumps(vae)) < 2 * len(pickle.dumps(_vae(max_iter=0).fit(rows)))
