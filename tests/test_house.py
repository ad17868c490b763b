"""The rules of the house that a machine can check: order of imports, sizes, docstrings."""

import ast
import inspect
import io
import math
import re
import statistics
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

PACKAGE = Path(skvae.__file__).parent

# A file imports only from files above it.
ORDER = [
    "_gaussian",
    "_bounds",
    "likelihoods",
    "_column_likelihoods",
    "priors",
    "_linear_start",
    "_columns",
    "_frames",
    "_products",
    "_networks",
    "_codes",
    "_vae",
    "_fused_likelihoods",
    "_fused",
    "_batches",
    "_recorded",
    "_training",
    "_diagnostics",
    "_importance",
    "_aggregate",
    "_scoring",
    "_parameters",
    "_resources",
    "_start",
    "_fitting",
    "_modules",
    "_inputs",
    "_health",
    "_callbacks",
    "_transformer",
    "_imputer",
    "_outlier",
    "__init__",
]
LEAVES = {"_gaussian", "_bounds", "_linear_start", "_products", "_columns", "_frames"}
LEAVES |= {"_parameters", "_resources", "_callbacks"}

# The torch core is usable without scikit-learn, and what has to be fast to import without torch.
CORE = {"_gaussian", "_bounds", "likelihoods", "_column_likelihoods", "priors", "_networks"}
CORE |= {
    "_products",
    "_vae",
    "_fused_likelihoods",
    "_fused",
    "_diagnostics",
    "_importance",
    "_aggregate",
    "_recorded",
    "_batches",
}
CORE |= {"_training", "_fitting"}
# Of SciPy these take sparse rows alone; the densities do without.
SPARSE = {
    "_batches": {"scipy.sparse"},
    "_fitting": {"scipy.sparse", "scipy.sparse.linalg"},
}
NUMERICAL = {"_linear_start", "_columns", "_frames", "_parameters", "_health", "_callbacks"}
# Of scikit-learn these use numerical routines and warnings, not the conventions of estimators.
ROUTINES = {
    "_linear_start": {"sklearn", "sklearn.decomposition", "sklearn.utils.extmath"},
    "_columns": {"sklearn.preprocessing"},
    "_health": {"sklearn.exceptions"},
    "_callbacks": {"sklearn.callback"},
}

ESTIMATORS = [VAETransformer, VAEImputer, VAEOutlierDetector]
FILES = sorted(PACKAGE.glob("*.py"))
TREES = {path.stem: ast.parse(path.read_text()) for path in FILES}
every_file = pytest.mark.parametrize("file", TREES)

Function = ast.FunctionDef | ast.AsyncFunctionDef


def _nodes(file, *kinds):
    return [node for node in ast.walk(TREES[file]) if isinstance(node, kinds)]


# -- imports --------------------------------------------------------------------------------------


def _typing_only(file):
    """The nodes under ``if TYPE_CHECKING``: no import when the package runs."""
    guards = [n for n in _nodes(file, ast.If) if ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {id(node) for guard in guards for part in guard.body for node in ast.walk(part)}


def _imports(file, with_typing=True):
    """Every module that a file imports, at its top or in a function, with full names."""
    skipped = set() if with_typing else _typing_only(file)
    modules = set()
    for node in _nodes(file, ast.Import, ast.ImportFrom):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif node.level == 0:
            modules.add(node.module)
        elif node.module:
            modules.add(f"skvae.{node.module}")
        else:  # from . import name
            modules |= {f"skvae.{alias.name}" for alias in node.names}
    return modules


def _house_imports(file):
    return {name.split(".")[1] for name in _imports(file) if name.startswith("skvae.")}


def _imports_package(file, package):
    modules = _imports(file, with_typing=False)
    return {name for name in modules if name.partition(".")[0] == package}


def test_every_file_has_its_place_in_the_order():
    assert set(TREES) == set(ORDER)


@every_file
def test_a_file_imports_only_from_files_above_it(file):
    above = set() if file in LEAVES else set(ORDER[: ORDER.index(file)])
    assert _house_imports(file) <= above


@every_file
def test_the_package_is_imported_by_relative_names(file):
    absolute = [n for n in _nodes(file, ast.ImportFrom) if n.level == 0]
    assert not [n.module for n in absolute if n.module.partition(".")[0] == "skvae"]


@every_file
def test_scikit_learn_enters_with_its_validation_of_rows(file):
    # In full where rows come in and for the estimators; else only as a library of routines.
    if file not in {"_inputs", "_transformer", "_imputer", "_outlier"}:
        assert _imports_package(file, "sklearn") <= ROUTINES.get(file, set())


@pytest.mark.parametrize("file", sorted(CORE))
def test_the_torch_core_needs_no_scikit_learn_and_of_scipy_sparse_rows_alone(file):
    assert not _imports_package(file, "sklearn")
    assert _imports_package(file, "scipy") <= SPARSE.get(file, set())


@pytest.mark.parametrize("file", sorted(NUMERICAL))
def test_the_numerical_files_need_no_torch(file):
    assert not _imports_package(file, "torch")


@every_file
def test_nothing_is_imported_that_is_not_a_dependency(file):
    modules = {name.partition(".")[0] for name in _imports(file)}
    outside = modules - {"skvae"} - sys.stdlib_module_names
    frames = {"pandas", "polars"} if file == "_frames" else set()
    dependencies = {"numpy", "scipy", "sklearn", "torch", "safetensors", "threadpoolctl"}
    assert outside <= dependencies | frames


def test_libraries_of_frames_are_imported_inside_functions_of_one_file():
    # Nobody who has no frames needs them, and nobody who has pays for the other library.
    inside = {id(node) for f in _nodes("_frames", Function) for node in ast.walk(f)}
    imports = [
        node
        for node in _nodes("_frames", ast.Import, ast.ImportFrom)
        if re.match(r"(from|import) (pandas|polars)\b", ast.unparse(node))
    ]
    assert imports
    assert all(id(node) in inside for node in imports)


# -- global state ---------------------------------------------------------------------------------

# Ways to move what is global; scoped ways stand in their place (DESIGN: randomness is an argument).
FORBIDDEN = re.compile(
    r"""
    torch\.(manual_seed|seed|random\..*|set_rng_state|cuda\.manual_seed.*)
    | torch\.set_(num_threads|num_interop_threads|default_dtype|default_device|grad_enabled
                  |default_tensor_type|float32_matmul_precision|deterministic_debug_mode|.*_denormal)
    | torch\.(use_deterministic_algorithms|distributions\..*)
    | nn\.(Linear|Dropout|init\..*) | torch\.nn\.(Linear|Dropout|init\..*)
    | (np|numpy)\.random\.(?!(default_rng|Generator|RandomState|SeedSequence)\b).*
    | (np|numpy)\.(seterr|set_printoptions)
    | os\.(environ|putenv).* | random\.\w+ | warnings\.(simplefilter|filterwarnings)
    """,
    re.VERBOSE,
)


# A context there sets and restores it (tests/test_state.py): nothing else reaches torch's own MKL.
SCOPED = {"_resources": {"torch.set_num_threads"}}


@every_file
def test_no_file_touches_what_is_global(file):
    used = {ast.unparse(node) for node in _nodes(file, ast.Attribute)}
    assert {name for name in used if FORBIDDEN.fullmatch(name)} == SCOPED.get(file, set())


@pytest.mark.parametrize(
    "name",
    ["torch.manual_seed", "np.random.seed", "torch.set_num_threads", "torch.set_default_dtype"],
)
def test_the_ban_covers_the_usual_suspects(name):
    assert FORBIDDEN.fullmatch(name)
    assert not FORBIDDEN.fullmatch("torch.Generator().manual_seed")
    assert not FORBIDDEN.fullmatch("np.random.default_rng().integers")


# -- words and sizes ------------------------------------------------------------------------------

OTHER_WORDS = re.compile(
    r"logvar|log_var|recon_loss|kld|reparam|(^|_)mask|utils|manager|config|compat"
)


@every_file
def test_the_words_are_those_of_the_house(file):
    names = {node.name for node in _nodes(file, Function, ast.ClassDef)}
    names |= {node.arg for node in _nodes(file, ast.arg)}
    names |= {n.id for n in _nodes(file, ast.Name) if isinstance(n.ctx, ast.Store)}
    assert {name for name in {*names, file} if OTHER_WORDS.search(name.lower())} == set()


def _code_lines(file):
    """The numbers of the lines that hold code: no comment, no docstring, not blank."""
    source = (PACKAGE / f"{file}.py").read_text()
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in silent | {tokenize.ENDMARKER}:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in _nodes(file, ast.Module, ast.ClassDef, Function):
        if ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def _function_sizes(file):
    lines = _code_lines(file)
    return {
        f"{file}.{node.name}, line {node.lineno}": len(
            lines & set(range(node.lineno, node.end_lineno + 1))
        )
        for node in _nodes(file, Function)
    }


def test_half_of_the_functions_have_at_most_8_lines():
    sizes = [size for file in TREES for size in _function_sizes(file).values()]
    assert statistics.median(sizes) <= 8


def _longest_allowed(name):
    # scikit-learn wants a line in the signature and one in the body for each parameter.
    of_estimator = re.match(r"(_transformer|_imputer)\.__init__,", name)
    return math.inf if of_estimator else 60


@every_file
def test_no_function_has_more_than_60_lines(file):
    sizes = _function_sizes(file).items()
    assert {name: size for name, size in sizes if size > _longest_allowed(name)} == {}


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_an_estimators_init_only_takes_its_parameters(estimator):
    (init,) = (
        node
        for owner in _nodes(estimator.__module__.partition(".")[2], ast.ClassDef)
        if owner.name == estimator.__name__
        for node in owner.body
        if getattr(node, "name", "") == "__init__"
    )
    names = [arg.arg for arg in init.args.args[1:] + init.args.kwonlyargs]
    assert [ast.unparse(node) for node in init.body] == [f"self.{n} = {n}" for n in names]


@every_file
def test_no_file_has_more_than_750_lines(file):
    assert len((PACKAGE / f"{file}.py").read_text().splitlines()) <= 750


@every_file
def test_every_file_says_what_it_is_for(file):
    first, *_ = ast.get_docstring(TREES[file]).splitlines()
    assert first.endswith(".")


# -- docstrings -----------------------------------------------------------------------------------

# numpydoc's codes: sections known, in order and not empty; a summary in one sentence; every
# parameter there, in order, with type and text; what is returned and raised.
CHECKED = {
    *("GL05", "GL06", "GL07", "GL08", "GL09", "GL10"),
    *("SS01", "SS02", "SS03", "SS04"),
    *("PR01", "PR02", "PR03", "PR04", "PR05", "PR06", "PR07", "PR08", "PR09", "PR10"),
    *("RT01", "RT03", "RT04", "RT05", "YD01"),
}
# The mathematics is terse: a formula may be the summary, and stand in place of the sections.
CHECKED_IN_THE_CORE = CHECKED - {"SS02"}
CHECKED_IN_METHODS_OF_THE_CORE = {"GL05", "GL06", "GL07", "GL08", "SS01"}


def _introduced_by(owner):
    """The public methods that a class introduces; those it implements inherit their docstring."""
    inherited = {name for base in owner.__mro__[1:] for name in vars(base)}
    methods = [name for name, value in vars(owner).items() if inspect.isfunction(value)]
    return [n for n in methods if not n.startswith("_") and n not in inherited]


def _public_objects():
    """(path, codes) of all that a user may call."""
    for estimator in ESTIMATORS:
        yield f"skvae.{estimator.__name__}", CHECKED
        for name in _introduced_by(estimator):
            yield f"skvae.{estimator.__name__}.{name}", CHECKED
    for module in (skvae.likelihoods, skvae.priors):
        for name, owner in inspect.getmembers(module, inspect.isclass):
            if owner.__module__ == module.__name__ and not issubclass(owner, tuple):
                path = f"{module.__name__}.{name}"
                yield path, _codes_of(owner)
                for method in _introduced_by(owner):
                    yield f"{path}.{method}", CHECKED_IN_METHODS_OF_THE_CORE


def _codes_of(owner):
    # Without an __init__ of its own the signature is torch's (*args, **kwargs).
    no_parameters = "__init__" not in vars(owner)
    return CHECKED_IN_THE_CORE - ({"PR01"} if no_parameters else set())


PUBLIC = dict(_public_objects())


def test_the_public_methods_are_those_of_the_design():
    assert set(_introduced_by(VAETransformer)) == {
        *("fit", "partial_fit", "transform", "inverse_transform", "sample"),
        *("score", "score_samples", "score_features"),
    }
    assert set(_introduced_by(VAEImputer)) == {
        *("fit", "transform", "sample_imputations", "get_feature_names_out"),
    }


@pytest.mark.parametrize("path", PUBLIC)
def test_docstrings_are_numpydoc(path):
    validate = pytest.importorskip("numpydoc.validate").validate
    errors = [f"{code}: {text}" for code, text in validate(path)["errors"] if code in PUBLIC[path]]
    assert errors == []


def _documented_parameters(path):
    """{name: type} from the docstring, {name: default} from the signature."""
    docscrape = pytest.importorskip("numpydoc.docscrape")
    owner = skvae
    for name in path.split(".")[1:]:
        owner = getattr(owner, name)
    kind = docscrape.ClassDoc if inspect.isclass(owner) else docscrape.FunctionDoc
    parameters = inspect.signature(owner).parameters.values()
    return (
        {p.name: p.type for p in kind(owner)["Parameters"]},
        {p.name: p.default for p in parameters if p.name != "self"},
    )


@pytest.mark.parametrize("path", [p for p in PUBLIC if "PR01" in PUBLIC[p]])
def test_the_defaults_in_a_docstring_equal_the_signature(path):
    documented, defaults = _documented_parameters(path)
    assert list(documented) == list(defaults)
    for name, default in defaults.items():
        written = re.search(r"default=(.+)$", documented[name])
        if name == "y":  # there for scikit-learn's sake alone
            continue
        assert (written is None) == (default is inspect.Parameter.empty), name
        if written:
            value = math.nan if written[1] == "nan" else ast.literal_eval(written[1])
            assert value == default or (value != value and default != default), name


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_docstring_lists_the_fitted_attributes(estimator):
    pandas = pytest.importorskip("pandas")
    docscrape = pytest.importorskip("numpydoc.docscrape")
    X = pandas.DataFrame(np.random.default_rng(0).normal(size=(20, 3)), columns=["a", "b", "c"])
    linear = VAETransformer(max_iter=0)
    model = (linear if estimator is VAETransformer else estimator(linear)).fit(X)
    fitted = {name for name in vars(model) if name.endswith("_") and not name.startswith("_")}
    documented = {entry.name for entry in docscrape.ClassDoc(estimator)["Attributes"]}
    assert documented == fitted
