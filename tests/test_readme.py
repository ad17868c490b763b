"""The README promises only what runs: its Python runs, and its links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from skvae import VAETransformer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
BLOCKS = PYTHON.findall(README)
PAGES = [
    p for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")] if p.exists()
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readmes_python_runs(number, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    # A few epochs show it as well as the hundreds of the default.
    monkeypatch.setitem(VAETransformer.__init__.__kwdefaults__, "max_iter", 5)
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})


def test_the_readme_is_a_page_to_be_read_at_once():
    assert len(README.splitlines()) <= 150
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("marker", ["main job", "test command"])
def test_the_readme_has_the_commands_that_are_run_from_it(marker):
    assert re.search(rf"^<!-- {marker} -->\n\n    pip install .+$", README, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_commands_name_are_there(page):
    named = re.findall(r"\b((?:benchmarks|examples|tests)/\w+\.py)\b", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_likelihood_that_contributing_shows_works():
    page = ROOT / "CONTRIBUTING.md"
    if not page.exists():
        pytest.skip("CONTRIBUTING.md is in the repository, not in the package.")
    names = {"__name__": "contributing"}
    (block,) = PYTHON.findall(page.read_text())
    exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    X = np.random.default_rng(0).laplace(size=(300, 3)) + np.array([0.0, 5.0, -5.0])
    vae = VAETransformer(1, likelihood=names["Laplace"](), random_state=0, max_iter=10).fit(X)
    assert vae.score(X) > stats.norm(X.mean(0), X.std(0)).logpdf(X).sum(1).mean()
    assert vae.sample(4, random_state=0).shape == (4, 3)
