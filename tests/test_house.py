"""The rules of the house that a machine can check: order of imports, sizes, docstrings."""

import ast
import functools
import graphlib
import inspect
import io
import math
import re
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest

import skvae
from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

PACKAGE = Path(skvae.__file__).parent

# The floors of the house, from the ground up: a file imports from lower floors, or from its own
# wing. Wings on one floor do not know each other.
FLOORS = [
    [
        "_advice",
        "_gaussian",
        "_specification",
        "_parameters",
        "_resources",
        "_callbacks",
        "_history",
    ],
    ["_table/"],
    ["likelihoods/", "priors"],
    ["_model/"],
    ["_start/", "_training/", "_inference/"],
    ["_fitted"],
    ["_preparing"],
    ["_fitting", "_health", "_inputs", "_versions", "_conditions", "_by_parts"],
    ["_sharded"],
    ["_together", "_cluster/"],
    ["_effects", "_html"],
    ["_transformer"],
    ["distributed"],
    ["_composed", "_detection", "_explanation", "_calibration"],
    ["_typical"],
    ["_detector"],
    ["_imputer", "_outlier"],
    ["_parquet", "dask"],
    ["_files/"],
    ["_persistence"],
    ["displays/"],
    ["_onnx/"],
    ["__init__"],
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Usable with torch alone; needed before torch is loaded; tables, which no torch ever touches.
CORE = ["_gaussian", "_specification", "likelihoods/", "priors", "_model/"]
# Distribution functions that torch lacks, imported when they are called.
WHEN_CALLED = {file: {"scipy.special"} for file in ("likelihoods/_real", "likelihoods/_counts")}
BEFORE_TORCH = ["_fitted", "_health", "_inputs", "_transformer", "_imputer", "_outlier"]
BEFORE_TORCH += ["_inference/codes", "_inference/few_rows", "_files/", "_persistence", "displays/"]
TORCHLESS = ["_table/", "_advice", "_parameters", "_callbacks", "_versions", "_health", "_inputs"]
TORCHLESS += ["_effects", "_html", "displays/"]
FRAMES = {"_table/of_pandas": {"pandas", "pyarrow"}, "_table/of_polars": {"polars"}}
FRAMES |= {"_table/of_arrow": {"pyarrow"}}
# Wings that only who has an extra comes to.
OF_EXTRAS = {"_onnx/": {"onnx", "skl2onnx"}, "_cluster/": {"dask", "distributed"}}
# Of scikit-learn these use numerical routines and warnings, not the conventions of estimators.
ROUTINES = {
    "_table/statistics": {"sklearn.preprocessing"},
    "_health": {"sklearn.exceptions"},
    "_callbacks": {"sklearn.callback"},
    "_versions": {"sklearn.exceptions"},
    "_cluster/estimator": {"sklearn.base"},
    "displays/_models": {"sklearn.pipeline"},
    "_onnx/export": {"sklearn.pipeline"},
    "_onnx/converters": {"sklearn.base", "sklearn.pipeline"},
    "_onnx/encoders": {"sklearn.pipeline", "sklearn.preprocessing"},
}
WITH_CONVENTIONS = {"_inputs", "_html", "_transformer", "_composed", "_imputer", "_outlier"}
WITH_CONVENTIONS |= {"_files/estimators", "_files/composites", "_persistence"}

ESTIMATORS = [VAETransformer, VAEImputer, VAEOutlierDetector]
DISPLAYS = [getattr(skvae.displays, name) for name in skvae.displays.__all__]
FILES = {str(p.relative_to(PACKAGE).with_suffix("")): p for p in sorted(PACKAGE.rglob("*.py"))}
EXTRAS = FRAMES | {"_files/composites": {"skops"}}
EXTRAS |= {name: {"matplotlib"} for name in FILES if name.startswith("displays/")}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
every_file = pytest.mark.parametrize("file", TREES)

Function = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def _all_nodes(file):
    return [*ast.walk(TREES[file])]


def _nodes(file, *kinds):
    return [node for node in _all_nodes(file) if isinstance(node, kinds)]


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
        else:
            modules |= {f"skvae/{name}" for name in _files_of(file, node)}
    return modules


def _files_of(file, node):
    """The files that a relative import names."""
    folder = file.split("/")[:-1]
    folder = folder[: len(folder) + 1 - node.level]
    parts = [*folder, *(node.module or "").split(".")]
    target = "/".join(part for part in parts if part)
    if target in TREES:
        return {target}
    inside = {"/".join([target, alias.name]).lstrip("/") for alias in node.names}
    return {name if name in TREES else f"{name}/__init__" for name in inside if target or name}


def _house_imports(file):
    return {name.removeprefix("skvae/") for name in _imports(file) if name.startswith("skvae/")}


def _room(file):
    """A wing, with a slash, or a file that stands alone."""
    wing, slash, _ = file.partition("/")
    return wing + slash


def _files_in(rooms):
    return sorted(f for f in TREES if f in rooms or _room(f) in rooms)


def _imports_package(file, package):
    modules = _imports(file, with_typing=False)
    return {name for name in modules if name.partition(".")[0] == package}


def test_every_file_has_its_floor():
    assert {_room(file) for file in TREES} == set(FLOOR_OF)


@every_file
def test_imports_run_down(file):
    floor = FLOOR_OF[_room(file)]
    if floor == 0:
        assert _house_imports(file) == set()
    for other in _house_imports(file):
        assert FLOOR_OF[_room(other)] < floor or _room(other) == _room(file), other


def test_imports_have_no_cycle():
    # Of a wing the front door, __init__, lists what is public: it may look at all rooms.
    rooms = {f: _house_imports(f) for f in TREES if not f.endswith("__init__")}
    order = [*graphlib.TopologicalSorter(rooms).static_order()]
    assert set(rooms) <= set(order)


@every_file
def test_the_package_is_imported_by_relative_names(file):
    absolute = [n for n in _nodes(file, ast.ImportFrom) if n.level == 0]
    assert not [n.module for n in absolute if n.module.partition(".")[0] == "skvae"]


@every_file
def test_scikit_learn_enters_with_its_validation_of_rows(file):
    # In full where rows come in and for the estimators; else only as a library of routines.
    if file not in WITH_CONVENTIONS:
        assert _imports_package(file, "sklearn") <= ROUTINES.get(file, set())


@pytest.mark.parametrize("file", _files_in(CORE))
def test_the_model_needs_no_scikit_learn_and_no_scipy(file):
    packages = _imports_package(file, "sklearn") | _imports_package(file, "scipy")
    assert packages <= WHEN_CALLED.get(file, set())


@pytest.mark.parametrize("file", _files_in(TORCHLESS))
def test_tables_need_no_torch(file):
    assert not _imports_package(file, "torch")


def _loaded_by(files, *packages):
    """Which packages a fresh interpreter loads with these files."""
    modules = ["skvae." + f.replace("/", ".").removesuffix(".__init__") for f in files]
    code = f"import sys, {', '.join(modules)}; print(*{set(packages)} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_what_must_be_fast_to_import_loads_no_torch():
    assert _loaded_by(_files_in([*BEFORE_TORCH, *TORCHLESS]), "torch") == []


def test_the_model_loads_no_scikit_learn_and_no_scipy():
    assert _loaded_by(_files_in(CORE), "sklearn", "scipy", "pandas", "polars") == []


@every_file
def test_nothing_is_imported_that_is_not_a_dependency(file):
    modules = {name.partition(".")[0].partition("/")[0] for name in _imports(file)}
    outside = modules - {"skvae"} - sys.stdlib_module_names
    dependencies = {"numpy", "scipy", "sklearn", "torch", "safetensors", "threadpoolctl"}
    extras = EXTRAS.get(file, set()) | OF_EXTRAS.get(_room(file), set())
    assert outside <= dependencies | extras


@pytest.mark.parametrize("file", EXTRAS)
def test_extras_are_imported_inside_functions(file):
    # Nobody who has no frames needs them, and nobody who has pays for the other library.
    inside = {id(node) for f in _nodes(file, Function) for node in ast.walk(f)}
    imports = [
        node
        for node in _nodes(file, ast.Import, ast.ImportFrom)
        if re.match(r"(from|import) (pandas|polars|pyarrow|matplotlib)\b", ast.unparse(node))
    ]
    assert imports or file not in FRAMES
    assert all(id(node) in inside for node in imports)


# The linear start's decoder weights maximise log p(x | z) before they are the model's.
DENSITIES = {"_model/vae": {"prior", "likelihood"}, "_start/glm": {"likelihood"}}


@pytest.mark.parametrize("file", [f for f in TREES if not f.startswith(("likelihoods/", "priors"))])
def test_the_joint_density_is_evaluated_in_the_model_alone(file):
    densities = [n.value for n in _nodes(file, ast.Attribute) if n.attr == "log_prob"]
    found = {m[0] for n in densities if (m := re.search("prior|likelihood", ast.unparse(n)))}
    assert found == DENSITIES.get(file, set())


@every_file
def test_no_underscore_of_another_file_is_imported(file):
    relative = [n for n in _nodes(file, ast.ImportFrom) if n.level]
    names = [a.name for n in relative if n.module for a in n.names]
    assert [name for name in names if name.startswith("_")] == []


# ``now`` is the estimator itself, as it was when one of its methods began. Named tuples have a
# public _replace; torch, sys and scikit-learn's callbacks offer some things in no other way.
OWN = {"self", "cls", "now", "super()"}
OFFERED = {"_replace", "_fused_adamw_", "_standard_gamma", "_is_avx512_bf16_supported"}
OFFERED |= {"_getframe", "_init_callback_context", "_repr_html_inner"}
OFFERED |= {"_Options", "_timeout", "_devices"}  # of torch's Gloo


@every_file
def test_no_object_reads_the_underscore_of_another(file):
    read = [n for n in _nodes(file, ast.Attribute) if re.match(r"_[^_]", n.attr)]
    others = [n for n in read if ast.unparse(n.value) not in OWN and n.attr not in OFFERED]
    assert [ast.unparse(node) for node in others] == []


def test_contributing_shows_every_file_in_the_order_of_the_floors():
    page = PACKAGE.parent / "CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("CONTRIBUTING.md is in the repository, not in the package.")
    rows = re.findall(r"^\| (`[^|]*`) \|", page.read_text(), re.MULTILINE)
    shown = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    doors = {f"{wing}__init__" for wing in FLOOR_OF if wing.endswith("/")}
    assert sorted(shown) == sorted(set(TREES) - doors)
    floors = [FLOOR_OF[_room(name)] for name in shown]
    assert floors == sorted(floors)


# -- global state ---------------------------------------------------------------------------------

# Ways to move what is global; scoped ways stand in their place (DESIGN: randomness is an argument).
FORBIDDEN = re.compile(
    r"""
    torch\.(manual_seed|seed|random\..*|set_rng_state|cuda\.manual_seed.*)
    | torch\.set_(num_threads|num_interop_threads|default_dtype|default_device|grad_enabled
                  |default_tensor_type|float32_matmul_precision|deterministic_debug_mode|.*_denormal)
    | torch\.(use_deterministic_algorithms|distributions\..*)
    | nn\.(Linear|Dropout|init\..*) | torch\.nn\.(Linear|Dropout|init\..*)
    | (np|numpy)\.random\.(?!(default_rng|Generator|RandomState|SeedSequence|Philox)\b).*
    | (np|numpy)\.(seterr|set_printoptions)
    | os\.(environ|putenv).* | random\.\w+ | warnings\.(simplefilter|filterwarnings)
    """,
    re.VERBOSE,
)


# A context there sets and restores it (tests/test_state.py): nothing else reaches torch's own MKL.
SCOPED = {"_resources": {"torch.set_num_threads"}}
# What a launcher says to its processes is read, and nothing written.
SCOPED |= {"_together": {"os.environ", "os.environ.get"}, "_training/collective": {"os.environ"}}


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
    assert {
        name for name in {*names, *file.split("/")} if OTHER_WORDS.search(name.lower())
    } == set()


def _code_lines(file):
    """The numbers of the lines that hold code: no comment, no docstring, not blank."""
    source = FILES[file].read_text()
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


def test_functions_are_small():
    # Signature included. scikit-learn wants two lines for each parameter of an estimator.
    sizes = {n: k for file in TREES for n, k in _function_sizes(file).items()}
    ordered = sorted(sizes.values())
    print(f"{len(ordered)} functions: {statistics.median(ordered)} lines, {ordered[-1]} at most")
    assert statistics.median(ordered) <= 6
    assert ordered[int(0.9 * len(ordered))] <= 18
    long = {name for name, size in sizes.items() if size > 50}
    assert long <= {name for name in sizes if re.match(r"(_transformer|_imputer)\.__init__,", name)}


@every_file
def test_no_function_has_more_than_five_parameters_by_place(file):
    for node in _nodes(file, Function):
        by_place = [a.arg for a in node.args.posonlyargs + node.args.args]
        assert len([name for name in by_place if name not in {"self", "cls"}]) <= 5, node.name


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
def test_files_are_short(file):
    # The transformer's is mostly prose: the documentation of its parameters.
    longest = 600 if file == "_transformer" else 450
    assert len(FILES[file].read_text().splitlines()) <= longest


@every_file
def test_every_file_says_what_it_is_for(file):
    first, *_ = ast.get_docstring(TREES[file]).splitlines()
    assert first.endswith(".")


# What a function does is said by a verb.
VERBS = """
    accept accumulate add allow append apply begin build call check choose climb clone complete
    compute convert copy count cut decide decode describe draw encode estimate evaluate fade fill
    find fit fold gather give go group hear hold impute initialise iterate keep learn let look
    make measure merge mix move multiply order pass pick place plan put raise read record release
    remember renumber repeat replace restore return rotate run sample say scale score search see
    select set show split start sum take tell train turn undo use validate warm warn write yield
"""


@every_file
def test_the_docstring_of_a_function_begins_with_a_verb(file):
    fragments = {}
    for node in _nodes(file, Function):
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        text = ast.get_docstring(node)
        if text and not decorators & {"property", "cached_property"}:
            first = re.match(r"\w*", text)[0].lower()
            if first not in {*VERBS.split(), "whether"}:
                fragments[node.name] = text.splitlines()[0]
    assert fragments == {}


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
    for function in ("save", "load", "to_onnx", "register_onnx_converters"):
        yield f"skvae.{function}", CHECKED
    yield "skvae.VAETransformer.component_effects", CHECKED
    for display in DISPLAYS:
        yield f"skvae.displays.{display.__name__}", CHECKED
        for name in vars(display):
            if callable(getattr(display, name)) and not name.startswith("_"):
                yield f"skvae.displays.{display.__name__}.{name}", CHECKED
    for module in (skvae.likelihoods, skvae.priors):
        for name, owner in inspect.getmembers(module, inspect.isclass):
            if owner.__module__.startswith(module.__name__) and not issubclass(owner, tuple):
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
        *("fit", "transform", "sample_imputations", "predict_cells", "get_feature_names_out"),
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
        {p.name.lstrip("*"): p.type for p in kind(owner)["Parameters"]},
        {p.name: p.default for p in parameters if p.name != "self"},
    )


@pytest.mark.parametrize("path", [p for p in PUBLIC if "PR01" in PUBLIC[p]])
def test_the_defaults_in_a_docstring_equal_the_signature(path):
    documented, defaults = _documented_parameters(path)
    assert list(documented) == list(defaults)
    defaults.pop("kwargs", None)
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
