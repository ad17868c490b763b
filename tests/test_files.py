"""Files of ``save`` come back to the last bit, and nothing else of them is silent."""

import copy
import io
import os
import pickle
import re
import stat
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sklearn
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from zoo import MAKE, assert_same, expected, fitted, numbers, results_of, rows_of, small

import skvae
from skvae import FileError, VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._files import container
from skvae.likelihoods import Gaussian

pytest.importorskip("safetensors")
each = pytest.mark.parametrize("name", MAKE)
DATA = Path(__file__).parent / "data"


def _again(estimator, folder, name="model.skvae"):
    skvae.save(estimator, folder / name)
    return skvae.load(folder / name)


# -- to the last bit ------------------------------------------------------------------------------


@each
def test_what_is_loaded_computes_the_same_bits(name, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = _again(fitted(name), tmp_path)
    assert vars(again).keys() == vars(fitted(name)).keys()
    found = results_of(again, rows_of(name))
    for method, result in expected(name).items():
        assert_same(found[method], result)


@each
def test_parameters_come_back_as_they_were_types_included(name, tmp_path):
    before, after = (e.get_params() for e in (fitted(name), _again(fitted(name), tmp_path)))
    assert before.keys() == after.keys()
    for parameter, value in before.items():
        assert type(after[parameter]) is type(value), parameter
        if isinstance(value, np.ndarray):
            assert_array_equal(after[parameter], value)
        elif not hasattr(value, "get_params") and not isinstance(value, np.random.RandomState):
            assert repr(after[parameter]) == repr(value), parameter


@each
def test_a_file_of_the_same_model_has_the_same_bytes(name, tmp_path):
    again = _again(fitted(name), tmp_path, "one")
    skvae.save(again, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize("name", ["default", "pandas", "polars", "random state", "modelled holes"])
def test_partial_fit_goes_on_as_it_would_have(name, tmp_path):
    one = copy.deepcopy(fitted(name)).partial_fit(rows_of(name))
    two = _again(one, tmp_path)
    for vae in (one, two):
        vae.partial_fit(rows_of(name))
    assert one.loss_curve_ == two.loss_curve_ and one.n_iter_ == two.n_iter_
    for key, weight in one.weights_.items():
        assert weight.tobytes() == two.weights_[key].tobytes()


def test_a_loaded_estimator_is_fitted_anew_as_its_original(tmp_path):
    one, two = copy.deepcopy(fitted("pandas")), _again(fitted("pandas"), tmp_path)
    X = rows_of("pandas")
    assert_array_equal(one.fit(X).transform(X), two.fit(X).transform(X))
    assert_array_equal(clone(two).fit(X).transform(X), one.transform(X))


def test_a_random_state_goes_on_and_is_shared_as_before(tmp_path):
    state = np.random.RandomState(0)
    imputer = VAEImputer(small(random_state=None), random_state=state).fit(numbers(holes=0.2))
    state.normal()  # of two, one of which waits
    assert imputer.vae_.random_state is imputer.random_state
    again = _again(imputer, tmp_path)
    assert again.vae_.random_state is again.random_state is not state
    assert_array_equal(again.random_state.normal(size=5), state.normal(size=5))


@pytest.mark.parametrize("kind", ["PCG64", "Philox", "SFC64"])
def test_random_states_of_other_generators_are_stored(kind, tmp_path):
    state = np.random.RandomState(getattr(np.random, kind)(3))
    again = _again(copy.deepcopy(fitted("default")).set_params(random_state=state), tmp_path)
    assert_array_equal(again.random_state.normal(size=5), state.normal(size=5))


def test_the_arrays_are_those_of_a_fit_writable_and_shared(tmp_path):
    again = _again(fitted("default"), tmp_path)
    assert again.weights_ is again.model_.weights
    assert all(array.flags.writeable for array in again.weights_.values())


def test_the_order_of_memory_is_kept(tmp_path):
    # Products round by it.
    one = copy.deepcopy(fitted("default"))
    for name, weight in one.weights_.items():
        one.weights_[name] = np.asfortranarray(weight)
    two = _again(one, tmp_path)
    assert two.weights_["encoder.mlp.first.weight"].flags.f_contiguous
    assert_array_equal(one.transform(numbers()), two.transform(numbers()))


def test_what_scikit_learn_was_told_is_kept(tmp_path):
    vae = copy.deepcopy(fitted("default"))
    vae.set_output(transform="pandas")
    with sklearn.config_context(enable_metadata_routing=True):
        vae.set_fit_request(sample_weight=True)
        again = _again(vae, tmp_path)
        assert str(again.get_metadata_routing()) == str(vae.get_metadata_routing())
    pd.testing.assert_frame_equal(again.transform(numbers()), vae.transform(numbers()))


def test_a_threshold_that_the_user_has_set_is_kept(tmp_path):
    detector = copy.deepcopy(fitted("detector"))
    detector.offset_ = np.float32(-3.25)
    again = _again(detector, tmp_path)
    assert again.offset_ == -3.25 and type(again.offset_) is np.float32


def test_labels_of_any_kind_name_columns_in_parameters(tmp_path):
    likelihood = {("a", 1): "student_t", ("b", "c"): Gaussian(floor=0.2)}
    X = rows_of("odd labels")
    vae = small(likelihood=likelihood, categorical_features=np.array([False] * 3)).fit(X)
    again = _again(vae, tmp_path)
    assert again.likelihood == likelihood
    assert_same(again.sample(3, random_state=0), vae.sample(3, random_state=0))


def test_a_memory_mapped_model_is_stored(tmp_path):
    import joblib

    joblib.dump(fitted("default"), tmp_path / "mapped")
    again = _again(joblib.load(tmp_path / "mapped", mmap_mode="r"), tmp_path)
    assert_array_equal(again.transform(numbers()), expected("default")["transform"])


# -- what is not stored ---------------------------------------------------------------------------


def test_callbacks_are_left_out_with_a_warning(tmp_path):
    callback = pytest.importorskip("sklearn.callback")
    vae = copy.deepcopy(fitted("default")).set_callbacks(callback.ScoringMonitor(scoring="r2"))
    with pytest.warns(UserWarning, match="does not store the callbacks of VAETransformer"):
        again = _again(vae, tmp_path)
    assert "_skl_callbacks" not in vars(again)


def test_attributes_that_fit_has_not_set_are_named(tmp_path):
    vae = copy.deepcopy(fitted("default"))
    vae.note, vae.component_scale_ = "mine", 2.0 * vae.component_scale_
    with pytest.warns(UserWarning, match="does not store component_scale_, note of VAETransformer"):
        skvae.save(vae, tmp_path / "model")


@dataclass(frozen=True)
class Own(Gaussian):
    """A likelihood of the user's own."""


class Level:
    """A level of the user's own."""


class Derived(VAETransformer):
    """An estimator of the user's own."""


def double(X):
    return 2.0 * X


def _with_own_level():
    frame = pd.DataFrame({"a": [Level(), Level()] * 20, "b": np.arange(40.0)})
    return small().fit(frame)


REFUSED = {
    "a likelihood": (
        lambda: small(likelihood=Own()).fit(numbers()),
        r"own likelihoods and priors alone, and VAETransformer.likelihood is a .*Own. Use pickle,",
    ),
    "a level": (_with_own_level, "column 'a' has a level that is not stored: .*Level"),
    "a parameter": (
        lambda: copy.deepcopy(fitted("default")).set_params(scaling=double),
        "does not store VAETransformer.scaling: .*double",
    ),
    "a subclass": (lambda: Derived(1, max_iter=0).fit(numbers()), "a Derived: use skops"),
    "a subclass within": (
        lambda: VAEOutlierDetector(Derived(1, max_iter=0)).fit(numbers()),
        "VAEOutlierDetector.vae: .*Derived",
    ),
    "a function within": (
        lambda: make_pipeline(FunctionTransformer(double), small()).fit(numbers()),
        "This Pipeline holds .*double, which .*trusted=",
    ),
    "none of ours": (lambda: StandardScaler().fit(numbers()), "a StandardScaler: use skops"),
    "no estimator": (lambda: numbers(), "a ndarray: use skops"),
    "a class": (lambda: VAETransformer, "a ABCMeta|a type"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_of_another_class_is_refused_and_leaves_no_file(what, tmp_path):
    make, said = REFUSED[what]
    with pytest.raises(TypeError, match=said):
        skvae.save(make(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "estimator", [small(), VAEImputer(), VAEOutlierDetector(), make_pipeline(small())], ids=str
)
def test_an_estimator_that_is_not_fitted_is_refused(estimator, tmp_path):
    name = type(estimator).__name__
    with pytest.raises(NotFittedError, match=f"This {name} is not fitted.*Call fit first"):
        skvae.save(estimator, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# -- one file, whole or not at all ----------------------------------------------------------------


class Somewhere(os.PathLike):
    def __init__(self, path):
        self.path = path

    def __fspath__(self):
        return str(self.path)


@pytest.mark.parametrize("kind", [str, Path, Somewhere, os.fsencode])
def test_paths_may_be_of_any_kind(kind, tmp_path):
    path = kind(tmp_path / "model")
    skvae.save(fitted("default"), path)
    assert_array_equal(skvae.load(path).transform(numbers()), expected("default")["transform"])


@pytest.mark.parametrize("path", [None, 3.5, io.BytesIO()], ids=["None", "float", "file"])
def test_what_is_no_path_is_refused_with_what_is_accepted(path):
    said = r"the path of a file: a str, bytes or os.PathLike.*Got .*Of an open file, pass its name"
    for call in (lambda: skvae.save(fitted("default"), path), lambda: skvae.load(path)):
        with pytest.raises(TypeError, match=f"{said}"):
            call()


@pytest.mark.parametrize("path", ["", "a\0b", "folder/", b""])
def test_what_can_be_no_files_name_is_refused(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (lambda: skvae.save(fitted("default"), path), lambda: skvae.load(path)):
        with pytest.raises(ValueError, match=r" is not the path of a file. Pass one that ends in"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_named_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="load finds no file ") as told:
        skvae.load("nothing")
    assert str(tmp_path / "nothing") in str(told.value)


def test_a_folder_is_neither_written_to_nor_read(tmp_path):
    # Nothing may be written beside it, either.
    inner = tmp_path / "inner"
    inner.mkdir()
    said = re.escape(f"{inner} is a folder, and skvae.")
    with pytest.raises(IsADirectoryError, match=f"{said}save writes one file.*model.skvae"):
        skvae.save(fitted("default"), inner)
    with pytest.raises(IsADirectoryError, match=f"{said}load reads one file"):
        skvae.load(inner)
    assert list(tmp_path.iterdir()) == [inner] and list(inner.iterdir()) == []


def test_a_file_in_a_folder_that_is_not_there_says_so_before_any_work(tmp_path):
    path = tmp_path / "nowhere" / "model"
    said = re.escape(f"cannot write {path}: there is no folder {path.parent}. Make it first")
    for estimator in (fitted("default"), None):  # it is not even looked at
        with pytest.raises(FileNotFoundError, match=said):
            skvae.save(estimator, path)
    beside = tmp_path / "text"
    beside.write_text("")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*text. Make it first"):
        skvae.save(fitted("default"), beside / "model")
    assert list(tmp_path.iterdir()) == [beside]


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="Windows has no such users.")
def test_a_folder_that_one_may_not_write_to_is_named(tmp_path):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        Path(folder).chmod(0o555)
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may write anywhere
        try:
            with pytest.raises(PermissionError, match="you may not write into") as told:
                skvae.save(fitted("default"), path)
        finally:
            os.seteuid(user)
        assert str(told.value).startswith(f"skvae.save cannot write {path}: ")
        Path(folder).chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such pipes.")
def test_a_pipe_is_neither_replaced_nor_waited_for(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(FileError, match="pipe cannot be loaded: it is not a file"):
        skvae.load(pipe)
    with pytest.raises(FileExistsError, match=r"pipe is there, and is no file.*another path"):
        skvae.save(fitted("default"), pipe)
    assert list(tmp_path.iterdir()) == [pipe] and not pipe.is_file()


def test_other_errors_of_the_system_name_the_users_path_and_no_other(tmp_path):
    path = tmp_path / ("x" * 250 + ".skvae")  # longer than names may be, unlike what is written
    for call in (lambda: skvae.save(fitted("default"), path), lambda: skvae.load(path)):
        with pytest.raises(OSError, match="too long") as told:
            call()
        assert str(path) in str(told.value) and ".part" not in str(told.value)
    assert list(tmp_path.iterdir()) == []


# -- types to trust -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trusted", ["__main__.double", b"numpy.dtype", None, 3, [double], ["a", 1]]
)
def test_trusted_types_are_a_list_of_names(trusted, tmp_path):
    path = tmp_path / "model"
    skvae.save(fitted("default"), path)
    for call in (skvae.load, lambda path, **k: skvae.save(fitted("linear"), path, **k)):
        with pytest.raises(TypeError, match=r"trusted must be a list of full names.*Got "):
            call(path, trusted=trusted)


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_file_that_cannot_be_written_leaves_the_old_one(error, call, tmp_path, monkeypatch):
    def fail(*args):
        raise error

    path = tmp_path / "model"
    skvae.save(fitted("default"), path)
    before = path.read_bytes()
    monkeypatch.setattr(*((os, call) if call == "fsync" else (Path, call)), fail)
    with pytest.raises(type(error)):
        skvae.save(fitted("linear"), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes and links.")
def test_a_file_keeps_its_mode_and_a_link_stays_one(tmp_path):
    path, link = tmp_path / "model", tmp_path / "link"
    link.symlink_to(path)
    skvae.save(fitted("default"), link)
    path.chmod(0o640)
    skvae.save(fitted("linear"), link)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_array_equal(skvae.load(path).transform(numbers()), expected("linear")["transform"])


def test_names_that_no_file_can_hold_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "LONGEST_HEADER", 5000)
    with pytest.raises(ValueError, match=r"more than 100 MB.*max_categories"):
        skvae.save(fitted("pandas"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_any_reader_of_safetensors_finds_the_weights(tmp_path):
    from safetensors.numpy import load_file

    skvae.save(fitted("default"), tmp_path / "model")
    arrays = load_file(tmp_path / "model")
    name = "encoder.linear.weight"
    assert_array_equal(
        arrays[f"VAETransformer.model_.weights.{name}"], fitted("default").weights_[name]
    )


def test_the_manifest_says_who_wrote_the_file(tmp_path):
    skvae.save(fitted("pandas"), tmp_path / "model")
    manifest, _ = container.unpack((tmp_path / "model").read_bytes())
    assert manifest["skvae_format"] == container.FORMAT
    versions = manifest["written_by"]
    assert versions["skvae"] == skvae.__version__ and versions["sklearn"] == sklearn.__version__
    assert {"python", "numpy", "torch", "pandas"} <= set(versions)


# -- without torch, without extras ----------------------------------------------------------------

SERVED = """
import pickle, sys
import skvae

with open(sys.argv[1], "rb") as file:
    asked = pickle.load(file)
for path, X, Z in asked:
    model = skvae.load(path)
    assert "torch" not in sys.modules, ("load", path)
    if Z is not None:
        assert "rich" not in sys.modules  # which scikit-learn's callbacks import
        found = model.transform(X)
        assert "torch" not in sys.modules, ("transform", path)
        assert found.tobytes() == Z.tobytes(), path
print(len(asked))
"""
ROWS_NEED_NONE = ["default", "pandas", "modelled holes", "multinomial", "normal scores", "sparse"]
READING_NEEDS_NONE = ["detector", "imputer of pandas", "imputer of polars", "odd levels"]


def test_neither_loading_nor_the_first_transform_needs_torch(tmp_path):
    asked = []
    for name in (*ROWS_NEED_NONE, *READING_NEEDS_NONE):
        X = rows_of(name)[:3]
        Z = fitted(name).transform(X) if name in ROWS_NEED_NONE else None
        skvae.save(fitted(name), tmp_path / name)
        asked.append((tmp_path / name, X, Z))
    (tmp_path / "asked").write_bytes(pickle.dumps(asked))
    command = [sys.executable, "-c", SERVED, str(tmp_path / "asked")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, f"{len(asked)}"), done.stderr


@pytest.mark.parametrize("extra", ["safetensors", "skops"])
def test_an_extra_that_is_absent_is_named(extra, tmp_path, monkeypatch):
    one = fitted("default") if extra == "safetensors" else make_pipeline(small()).fit(numbers())
    skvae.save(one, tmp_path / "model")
    monkeypatch.setitem(sys.modules, extra, None)
    said = rf'need {extra}.*pip install "skvae\[files\]"'
    with pytest.raises(ImportError, match=said):
        skvae.save(one, tmp_path / "other")
    with pytest.raises(ImportError, match=said):
        skvae.load(tmp_path / "model")


def test_our_own_estimators_need_no_skops(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skops", None)
    for name in ("default", "detector", "imputer"):
        _again(fitted(name), tmp_path)


# -- size -----------------------------------------------------------------------------------------


def _mixed(n_rows=400):
    rng = np.random.default_rng(0)
    levels = {
        f"c{n}": pd.Categorical(rng.choice(list("abcdefgh")[: n + 2], n_rows)) for n in range(6)
    }
    values = {f"n{n}": rng.normal(size=n_rows) for n in range(6)}
    return pd.DataFrame(levels | values)


@pytest.mark.parametrize("rows", ["digits", "iris", "mixed"])
def test_a_pickle_of_a_default_model_is_little_more_than_its_weights(rows):
    from sklearn.datasets import load_digits, load_iris

    load = {"digits": load_digits, "iris": load_iris}.get(rows)
    X = _mixed() if load is None else load().data
    vae = VAETransformer(max_iter=1, random_state=0).fit(X)
    n_bytes = sum(array.nbytes for array in vae.weights_.values())
    assert len(pickle.dumps(vae)) <= 1.2 * n_bytes


def test_nothing_that_is_built_at_first_use_is_in_a_pickle():
    vae = copy.deepcopy(fitted("normal scores"))
    before = len(pickle.dumps(vae))
    results_of(vae, rows_of("normal scores"))
    assert len(pickle.dumps(vae)) == before


def test_a_frame_is_in_a_pickle_as_plain_values():
    state = fitted("odd levels").model_.schema.__getstate__()
    assert set(state) == {"parts"} and type(state["parts"]) is str
    again = pickle.loads(pickle.dumps(fitted("odd levels").model_.schema))
    assert again.columns == fitted("odd levels").model_.schema.columns


def test_levels_of_the_users_own_are_left_to_pickle():
    schema = _with_own_level().model_.schema
    again = pickle.loads(pickle.dumps(schema))
    assert [type(level) for level in again.columns[0].levels] == [Level] * len(
        schema.columns[0].levels
    )
