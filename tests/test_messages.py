"""Every message that a user may see is asserted by a test; the docs list them from the source."""

import ast
import hashlib
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from skvae import (
    VAEImputer,
    VAEOutlierDetector,
    VAETransformer,
    displays,
    load,
    register_onnx_converters,
    save,
    to_onnx,
)
from skvae._files import container
from skvae.likelihoods import Gaussian
from skvae.priors import StandardNormal

ROOT = Path(__file__).parents[1]
if not (ROOT / "docs" / "_extensions").exists():
    pytest.skip("The docs are not beside the tests.", allow_module_level=True)
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))
import messages  # noqa: E402

FOUND = messages.find_messages()
N_WORDS = 3  # of a fragment that tells one message from all others


# -- what cannot be told from the words of the tests, or has no test elsewhere ---------------------

X = np.random.default_rng(0).normal(size=(60, 4))


def _fit(X=X, n_components=1, **params):
    return VAETransformer(n_components, max_iter=0, random_state=0, **params).fit(X)


def _frame(**columns):
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"x": X[:, 0], "y": X[:, 1]} | columns)


def _days():
    return np.datetime64("2024-01-01") + np.arange(60)


def _dates_then_numbers():
    vae = _fit(_frame(day=_days()))
    vae.transform(_frame(day=X[:, 2]))


def _columns_in_another_order():
    numbered = _frame().set_axis([0, 1], axis=1)  # scikit-learn compares only names
    _fit(numbered).transform(numbered[[1, 0]])


def _scarce_structure():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))
    half = np.sqrt(8.0 * np.array([9.0, 4.0, *6 * [1.0]]))[:, None] * rotation.T
    _fit(np.concatenate([half, -half]), n_components=4, scaling=None)


def _lazy_frame():
    polars = pytest.importorskip("polars")
    lazy = polars.LazyFrame({"x": X[:, 0], "y": X[:, 1]})
    _fit(lazy.collect()).sample(given=lazy)


def _texts_among(n_texts):
    cells = [*["unknown"] * n_texts, *X[n_texts:, 2].tolist()]
    return _fit(_frame(z=np.array(cells, dtype=object)))


class Slotted(Gaussian):
    __slots__ = ()


class Failing(Gaussian):
    def log_prob(self, x, raw):
        raise RuntimeError("no density today")


@dataclass(frozen=True)
class Scalar(StandardNormal):
    def log_prob(self, z):
        return super().log_prob(z).sum()


def _double(X):
    return 2.0 * X


class Level:
    """A level of the user's own."""


def _save(estimator):
    pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        save(estimator, path)
        return path.read_bytes()


def _load(data):
    pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        path.write_bytes(data)
        return load(path)


def _stored(**manifest):
    """A file of a manifest that makes no sense."""
    pytest.importorskip("safetensors")
    return container.pack(manifest, {})


def _without_checksum():
    """A file of safetensors that has none."""
    header = b'{"__metadata__":{"skvae":"{}"}}'
    return len(header).to_bytes(8, "little") + header


def _nested():
    """A file whose manifest is a list in a list in a list."""
    mark = "deep"
    data = _stored(model=mark)
    header = data[8:].replace(b'\\"deep\\"', 50_000 * b"[" + 50_000 * b"]")
    data = len(header).to_bytes(8, "little") + header
    place = container.DIGEST.search(data)
    blank = data[: place.start(1)] + container.NO_DIGEST + data[place.end(1) :]
    digest = hashlib.sha256(blank).hexdigest().encode()
    return data[: place.start(1)] + digest + data[place.end(1) :]


def _noted():
    vae = _fit()
    vae.note = "mine"
    _save(vae)


def _of_later():
    data = _save(_fit())
    manifest, arrays = container.unpack(data)
    manifest = {name: value for name, value in manifest.items() if name == "model"}
    (form,) = manifest["model"].values()
    form["parameters"]["from_later"] = 1
    return container.pack(manifest, arrays)


def _in_a_pipeline():
    return make_pipeline(FunctionTransformer(_double), VAETransformer(1, max_iter=0)).fit(X)


def _without(extra, call):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, extra, None)
        call()


def _graph(estimator, *args, **params):
    pytest.importorskip("skl2onnx")
    return to_onnx(estimator, *args, **params)


def _converted(kind, n_columns=4):
    """Convert a model of four numbers by skl2onnx, for inputs of another kind or number."""
    skl2onnx = pytest.importorskip("skl2onnx")
    register_onnx_converters()
    inputs = [("X", getattr(skl2onnx.common.data_types, kind)([None, n_columns]))]
    skl2onnx.convert_sklearn(_fit(), initial_types=inputs, target_opset=18)


def _two_names_of_one_text():
    pandas = pytest.importorskip("pandas")
    names = pandas.Index([np.float32(0.1), 0.1], dtype=object)
    _graph(_fit(pandas.DataFrame(X[:, :2]).set_axis(names, axis=1)))


# {message as the source has it: what triggers it}. A message whose words are found in other tests
# needs no place here.
TRIGGERS = {
    "The {name} parameter of {owner} must be {rule}. Got {...} instead.": lambda: _fit(beta=-1.0),
    "The 'vae' parameter of {owner} must be a VAETransformer, a dict of its parameters or None. "
    "Got {vae} instead.": lambda: VAEImputer("pca").fit(X),
    "The 'vae' parameter of {owner} names {unknown}, which are no parameters of VAETransformer.": (
        lambda: VAEImputer({"components": 2}).fit(X)
    ),
    "n_samples must be {COUNT}. Got {n_samples} instead.": lambda: _fit().sample(0),
    "given: Column {name} holds {...}, which was not there in fit; its levels were {...}.": (
        lambda: _fit(_frame(job=["clerk", "boss"] * 30)).sample(given={"job": "astronaut"})
    ),
    "The columns of X are {...}, but fit had {...}. Pass the columns of fit, in their order.": (
        _columns_in_another_order
    ),
    "{n_inactive} of {n_components} components {are} inactive, with less than 0.01 nats: "
    "transform returns 0 for {them}. Use n_components={n_active}.": _scarce_structure,
    "The noise scale of each of the columns {named}{more} fell to its floor, 0.001 of the column's "
    "standard deviation: the components reproduce {it} exactly, so {its} density has no natural "
    "limit. Drop columns that say the same as others.": lambda: _fit(X[:, [0, 0]]),
    "Column {name} holds numbers, but {n_strays} of its {n_cells} values are not numbers ({...}): "
    "these are taken as missing. Correct them, or name the column in categorical_features.": (
        lambda: _texts_among(2)
    ),
    "Column {name} holds numbers, but {n_strays} of its {n_cells} values are not numbers ({...}), "
    "so it is taken as a category. Correct them if the column is to be numeric.": (
        lambda: _texts_among(30)
    ),
    "X is a {__name__} of {...}, whose rows are not in memory. Pass rows that are: {how}.": (
        _lazy_frame
    ),
    "X must hold numbers or levels of categories; its dtype is {dtype}. Turn such columns into "
    "numbers first, for example dates into days since the first.": lambda: _fit(_days()[:, None]),
    "Column {name} holds {here}, where fit had {there}. Convert it to what fit had.": (
        _dates_then_numbers
    ),
    "X is sparse, but fit had a frame, or columns that are not numbers. Pass rows as fit had them: "
    "a frame, or a dense array.": lambda: _fit(_frame()).transform(csr_matrix(X[:, :2])),
    "Column {first} is to be a category, but X is sparse: categories need dense rows. Use "
    "X.toarray(), or a likelihood of numbers.": lambda: _fit(
        csr_matrix(X), categorical_features=[2]
    ),
    "The likelihood {name} cannot have slots: models make copies with values.": lambda: _fit(
        likelihood=Slotted()
    ),
    "The likelihood {name} fails in {call}: {error}": lambda: _fit(likelihood=Failing()),
    "{name}.{call} must return the shape {...} for z of shape (2, 3). It returned the shape "
    "{...}.": lambda: _fit(prior=Scalar()),
    # Pictures
    "{name} must be {rule}. Got {value}.": lambda: displays.OutlierDisplay.from_estimator(
        VAEOutlierDetector().fit(X), X, n_rows=-1
    ),
    # Files
    "This {where} holds {...}, which skvae.save does not store by itself. If you trust that, use "
    "trusted={strange} in save and in load.": lambda: _save(_in_a_pipeline()),
    "skvae.save and skvae.load need skops for estimators of scikit-learn's around ours. Install "
    'it: pip install "skvae[files]"': lambda: _without("skops", lambda: _save(_in_a_pipeline())),
    'skvae.save and skvae.load need safetensors. Install it: pip install "skvae[files]"': lambda: (
        _without("safetensors", lambda: save(_fit(), "nowhere"))
    ),
    "{target} cannot be loaded: its contents are not those that its checksum stands for: it was "
    "cut short, damaged or changed.": lambda: _load(_save(_fit())[:-1] + b"?"),
    "{target} cannot be loaded: it is not a file of skvae.save, or it was cut short.": (
        lambda: _load(b"short")
    ),
    "{target} cannot be loaded: it is not a file of skvae.save, or it was damaged: it has no "
    "checksum.": lambda: _load(_without_checksum()),
    "{target} cannot be loaded: its parts are nested too deeply.": lambda: _load(_nested()),
    "{target} cannot be loaded: its contents make no sense ({__name__}: {said}).": (
        lambda: _load(_stored(other=1))
    ),
    "{target} cannot be loaded: it is not a file.": lambda: load("/dev/zero"),
    "{target} cannot be loaded: its {__name__} has {...}, which this skvae does not know. Upgrade "
    "skvae.": lambda: _load(_of_later()),
    "{target} cannot be loaded: it holds no estimator.": lambda: _load(_stored(model=3)),
    "skvae.save does not store {names} of {where}: fit has not set it so.": _noted,
    "skvae.save does not store {where}: {why}. Give it another type, or use pickle for files that "
    "you trust.": lambda: _save(_fit().set_params(scaling=_double)),
    "skvae.save does not store {where}: {error}. Make such levels texts before fit, or use pickle "
    "for files that you trust.": lambda: _save(
        _fit(_frame(level=np.array([Level() for _ in X], dtype=object)))
    ),
    "skvae.save stores VAETransformer, VAEOutlierDetector, VAEImputer, and estimators of "
    "scikit-learn's that have one of these within them. Got {estimator}, a {name}: use skops.io or "
    "pickle.": lambda: _save(X),
    # Graphs
    'ONNX models need {package}, which is not installed: pip install "skvae[onnx]".': lambda: (
        _without("onnx", lambda: to_onnx(_fit()))
    ),
    "{method} cannot be an ONNX model. {why} Of a {name}, {...} and {...} can be.": lambda: _graph(
        _fit(), method="log_likelihood"
    ),
    "{method} cannot be an ONNX model. Of a {name}, {...} and {...} can be.": lambda: _graph(
        _fit(), method="predict"
    ),
    "X must be a frame, or an array of numbers.": lambda: _graph(
        make_pipeline(StandardScaler(), VAETransformer(1, max_iter=0)).fit(X), X.astype("O")
    ),
    "The input {raw_name} of a skvae estimator has the type {type}, but it reads numbers, truth "
    "values and texts.": lambda: _converted("Complex64TensorType"),
    "The graph is fed {n_fed} columns, but the model was fitted to {...}.": lambda: _converted(
        "FloatTensorType", 3
    ),
    "Column {name} is one of numbers, but the graph is fed texts.": lambda: _converted(
        "StringTensorType"
    ),
    "Two columns of the fitted table would both be the input {twice}. Give them names that differ "
    "as text.": _two_names_of_one_text,
    # Detectors
    "predict follows one rule, contamination or fdr. Got contamination={contamination} and "
    "fdr={fdr}: leave one of them at its default.": lambda: VAEOutlierDetector(
        contamination=0.1, fdr=0.1
    ).fit(X),
}


def _pattern(text):
    """A regular expression for the message, whatever is put in."""
    literals = re.split(r"\{[\w.]+\}", text.replace("{more}", ""))
    return "(?s)" + ".+".join(map(re.escape, literals)) + r"\Z"


@pytest.mark.filterwarnings("ignore:1 of 1 components", "ignore:X does not have valid feature")
@pytest.mark.filterwarnings("ignore:Column .level. holds another level")
@pytest.mark.parametrize("text", TRIGGERS)
def test_the_message_is_what_a_user_sees(text):
    (kind,) = {one.kind for one in FOUND if one.text == text}
    if kind.endswith("Warning"):
        with pytest.warns(UserWarning, match=_pattern(text)):
            TRIGGERS[text]()
    else:
        with pytest.raises((ValueError, TypeError, ImportError), match=_pattern(text)) as told:
            TRIGGERS[text]()
        assert type(told.value).__name__ == kind


# -- all of them ----------------------------------------------------------------------------------


def _texts_of_tests():
    """All strings of the tests, but for docstrings: a regular expression is the text between."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        tree = ast.parse(path.read_text())
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if is_text and id(node) not in alone and path != Path(__file__):
                yield from re.split(r"\.[*+]", node.value.replace("\\", ""))


def _runs(text, n_words):
    words = messages.words_of(text)
    return {tuple(words[i : i + n_words]) for i in range(len(words) - n_words + 1)}


def _fragments(message):
    """Three words in a row, or a clause of two."""
    clauses = [clause for one in message.literals for clause in re.split(r"[.,:;(]\s", one)]
    short = {words for clause in clauses if len(words := tuple(messages.words_of(clause))) == 2}
    return short.union(*(_runs(literal, N_WORDS) for literal in message.literals))


EACH = {message.text: message for message in FOUND}  # some are said in two places
COUNTS = Counter(fragment for message in EACH.values() for fragment in _fragments(message))


@cache  # and not where this file is merely collected, in each of the processes
def _in_tests():
    return {run for text in _texts_of_tests() for n in (2, N_WORDS) for run in _runs(text, n)}


@pytest.mark.parametrize("message", FOUND, ids=lambda one: f"{one.file}, line {one.line}")
def test_every_message_is_asserted_by_a_test(message):
    # By words that no other message has.
    own = {fragment for fragment in _fragments(message) if COUNTS[fragment] == 1}
    assert message.text in TRIGGERS or own & _in_tests(), message.text


def test_no_trigger_is_left_of_a_message_that_is_gone():
    assert set(TRIGGERS) - {message.text for message in FOUND} == set()


def test_every_message_says_something():
    # Else what it says is made elsewhere: name that in MADE_ELSEWHERE.
    silent = [m for m in FOUND if sum(len(messages.words_of(part)) for part in m.literals) < 3]
    assert silent == []


def test_a_message_says_what_to_do_or_what_was_expected_in_whole_sentences():
    end = re.compile(r"""([.]|\{\w+\}|"skvae\[\w+\]")$""")
    assert [m.text for m in FOUND if not end.search(m.text)] == []


MADE = {"no_dates", "not_finite", "_copied"}  # functions that return an error


def test_every_error_is_listed_or_named_as_internal():
    house, listed = messages.House(messages.PACKAGE), {(m.file, m.line) for m in FOUND}
    internal, others = [], []
    for name, file in house.files.items():
        for node in (n for n in file.nodes(ast.Raise) if n.exc is not None):
            call = ast.unparse(getattr(node.exc, "func", node.exc))
            wraps = call in messages.WRAPPED and "cannot be loaded" in ast.unparse(node)
            if wraps or name.startswith(messages.QUOTED_IN.get(call, ())):
                continue
            if file.is_internal(node) or call == "AssertionError":
                internal.append(f"{name}: {ast.unparse(node)}")
            elif (name, node.lineno) not in listed and call not in MADE:
                others.append(f"{name}: {ast.unparse(node)}")
    assert others == []
    assert len(internal) <= 10


def test_the_list_has_a_heading_for_every_message():
    # Files that come later are listed under a heading for all others, which should be short.
    others = {m.file for m in FOUND if messages.section_of(m.file) == messages.OTHERS}
    assert len(others) <= 5
