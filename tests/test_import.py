"""What an import costs, each time in a fresh interpreter."""

import os
import pickle
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import skvae
from skvae import VAETransformer

HEAVY = {"torch", "sklearn", "scipy", "matplotlib", "pandas", "polars", "onnx", "safetensors"}
HEAVY |= {"skops"}
EXTRAS = {"matplotlib", "pandas", "polars"}

# Makes packages look as if they were not installed.
ABSENT = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    absent = {without}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        absent = name.partition(".")[0] in cls.absent
        return None if absent else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def _run(code, without=("nothing",)):
    """What ``code`` prints in a fresh interpreter, as if some packages were not installed."""
    environment = {k: v for k, v in os.environ.items() if k != "SCIPY_ARRAY_API"}
    command = [sys.executable, "-c", ABSENT.format(without=set(without)) + code]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_package_loads_nothing_heavy():
    loaded = _run(f"import skvae; dir(skvae); skvae.__version__; print({HEAVY} & set(sys.modules))")
    assert loaded == "set()"


# scikit-learn itself loads pandas where it finds it, so what is not needed is taken away.


def test_an_estimator_is_made_and_shown_without_torch():
    code = (
        "from skvae import VAETransformer\n"
        "from sklearn.base import clone\n"
        "vae = clone(VAETransformer(n_components=2).set_params(beta=0.5))\n"
        "vae._repr_html_(); vae.__sklearn_tags__(); print(vae)"
    )
    assert _run(code, without=EXTRAS | {"torch"}) == "VAETransformer(beta=0.5, n_components=2)"


def test_likelihoods_and_priors_need_torch_alone():
    code = "import skvae; print(skvae.likelihoods.Gaussian(), skvae.priors.StandardNormal())"
    shown = _run(code, without=EXTRAS | {"sklearn", "scipy"})
    assert shown == "Gaussian(noise='per_column', floor=None) StandardNormal()"


def test_every_method_works_without_frames_and_plots():
    code = (
        "import numpy as np\n"
        "from skvae import VAETransformer\n"
        "X = np.random.default_rng(0).normal(size=(30, 4))\n"
        "vae = VAETransformer(n_components=2, max_iter=1).fit(X).partial_fit(X)\n"
        "vae.inverse_transform(vae.transform(X)); vae.score(X); vae.score_features(X)\n"
        "assert vae.component_effects(X).effect.shape == (4, 2)\n"
        "print(vae.sample(3).shape)"
    )
    assert _run(code, without=EXTRAS) == "(3, 4)"


def test_without_matplotlib_a_display_says_how_to_install_it():
    code = (
        "import numpy as np\n"
        "from skvae.displays import LatentDisplay\n"
        "try:\n    LatentDisplay(codes=np.zeros((3, 2))).plot()\n"
        "except ImportError as error:\n    print(error)"
    )
    assert _run(code, without=EXTRAS) == (
        "LatentDisplay draws with matplotlib, which is not installed. "
        'Use pip install "skvae[plot]".'
    )


def test_the_estimator_adds_only_itself_to_the_import_of_scikit_learn():
    # What it costs in time (under 50 ms) is measured by benchmarks/speed.py.
    code = (
        "import sys, sklearn.base, sklearn.utils.validation, sklearn.decomposition\n"
        "before = set(sys.modules)\n"
        "import skvae; from skvae import VAETransformer; VAETransformer()\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    assert _run(code, without=EXTRAS) == "skvae"


def test_a_fitted_estimator_is_unpickled_in_a_fresh_interpreter(tmp_path):
    X = np.random.default_rng(0).normal(size=(30, 4))
    vae = VAETransformer(n_components=2, max_iter=0, random_state=0).fit(X)
    (tmp_path / "vae.pickle").write_bytes(pickle.dumps((vae, X)))
    code = (
        "import pickle, sys\n"
        f"vae, X = pickle.loads(open({str(tmp_path / 'vae.pickle')!r}, 'rb').read())\n"
        "assert 'Fitted model' in vae._repr_html_()\n"
        "assert 'torch' not in sys.modules\n"
        "print(vae.transform(X).tobytes().hex())"
    )
    assert _run(code, without=EXTRAS) == vae.transform(X).tobytes().hex()


def test_the_public_names_are_listed_and_there():
    names = ["SKOPS_TRUSTED_TYPES", "FileError", "VAEImputer", "VAEOutlierDetector"]
    names += ["VAETransformer", "dask", "displays", "distributed", "likelihoods", "load"]
    names += ["priors"]
    names += ["register_onnx_converters", "save", "to_onnx", "to_parquet"]
    assert skvae.__all__ == names
    assert set(skvae.__all__) <= set(dir(skvae))
    assert "__version__" in dir(skvae)
    for name in skvae.__all__:
        assert getattr(skvae, name) is not None
    assert skvae.VAETransformer.__module__.partition(".")[0] == "skvae"


OF_ONNX = {
    "to_onnx(vae)": "onnx",
    "to_onnx(make_pipeline(vae))": "skl2onnx",
    "register_onnx_converters()": "skl2onnx",
}


@pytest.fixture(scope="module")
def told_without():
    """What each call says while its package cannot be imported."""
    code = (
        "import numpy as np\n"
        "from sklearn.pipeline import make_pipeline\n"
        "from skvae import VAETransformer, register_onnx_converters, to_onnx\n"
        "vae = VAETransformer(1, max_iter=0).fit(np.random.default_rng(0).normal(size=(30, 3)))\n"
        "everything_else = Finder.absent\n"
    )
    for call, package in OF_ONNX.items():
        code += (
            f"Finder.absent = everything_else | {{{package!r}}}\n"
            f"try:\n    {call}\nexcept ImportError as error:\n    print(error)\n"
            f"assert {package!r} not in sys.modules\n"
        )
    return dict(zip(OF_ONNX, _run(code, without=EXTRAS).splitlines(), strict=True))


@pytest.mark.parametrize(("call", "package"), OF_ONNX.items())
def test_what_needs_onnx_says_how_to_install_it(call, package, told_without):
    expected = f'ONNX models need {package}, which is not installed: pip install "skvae[onnx]".'
    assert told_without[call] == expected


def test_a_star_import_brings_the_public_names():
    code = "from skvae import *; print(*sorted(set(dir()) & {'VAETransformer', 'priors'}))"
    assert _run(code, without=EXTRAS) == "VAETransformer priors"


@pytest.mark.parametrize("name", ["VAE", "transformer", "_nothing"])
def test_an_unknown_name_is_an_attribute_error(name):
    with pytest.raises(AttributeError, match=f"module 'skvae' has no attribute '{name}'"):
        getattr(skvae, name)


@pytest.mark.parametrize("name", ["VAEImputer", "VAEOutlierDetector", "VAETransformer"])
def test_help_names_types_by_their_short_names(name):
    shown = pydoc.plain(pydoc.render_doc(getattr(skvae, name)))
    own = [line for line in shown.splitlines() if "(self, X" in line]
    assert any("X: 'ArrayLike'" in line for line in own)
    assert max(map(len, own)) < 200
    assert "_typing" not in shown


def test_all_files_name_the_same_version():
    citation = (Path(skvae.__file__).parents[1] / "CITATION.cff").read_text()
    assert f"\nversion: {skvae.__version__}\n" in citation
