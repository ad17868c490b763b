"""The docs promise only what runs and exists: code, source, links, pages, the gallery."""

import ast
import re
import sys
from pathlib import Path

import pytest

import skvae
from skvae import VAETransformer

ROOT = Path(__file__).parents[1]
DOCS, EXAMPLES = ROOT / "docs", ROOT / "examples"
if not (DOCS / "_extensions").exists():
    pytest.skip("The docs are not beside the tests.", allow_module_level=True)
sys.path.insert(0, str(DOCS / "_extensions"))
import api_pages  # noqa: E402
import internal_links  # noqa: E402
import messages  # noqa: E402

PAGES = {path.stem: path.read_text() for path in sorted(DOCS.glob("*.md"))}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHOWN = re.compile(
    r"^```\{code-block\} python\n:caption: (.+?)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n:pyobject: (\S+)$", re.MULTILINE)
WITH_CODE = [name for name, text in PAGES.items() if PYTHON.search(text)]
every_page = pytest.mark.parametrize("page", PAGES)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_python_of_a_page_runs_from_top_to_bottom(page, monkeypatch):
    # A few epochs show it as well as the hundreds of the default.
    monkeypatch.setitem(VAETransformer.__init__.__kwdefaults__, "max_iter", 5)
    names = {}
    for number, block in enumerate(PYTHON.findall(PAGES[page])):
        exec(compile(block, f"{page}.md, block {number}", "exec"), names)


def test_what_is_shown_without_being_run_says_what_it_needs():
    shown = [match.groups() for text in PAGES.values() for match in SHOWN.finditer(text)]
    assert sorted(caption for caption, _ in shown) == [
        "needs pyod",
        "needs umap-learn",
        "needs umap-learn",
    ]
    for _, code in shown:
        ast.parse(code)
    blocks = sum(len(re.findall(r"^```\{code-block\} python", t, re.M)) for t in PAGES.values())
    assert blocks == len(shown)


# -- source ---------------------------------------------------------------------------------------


def _objects_of(path):
    """Names of functions and classes, and of methods by class and dot."""
    tree = ast.parse(path.read_text())
    named = [node for node in tree.body if hasattr(node, "name")]
    inner = [f"{owner.name}.{n.name}" for owner in named for n in owner.body if hasattr(n, "name")]
    return {*(node.name for node in named), *inner}


@pytest.mark.parametrize("place", sorted(set(INCLUDED.findall(PAGES["theory"]))))
def test_the_theory_shows_lines_that_exist(place):
    path, name = place
    assert name in _objects_of(DOCS / path)


def test_every_step_of_the_theory_points_to_its_lines():
    steps = re.split(r"^## ", PAGES["theory"], flags=re.MULTILINE)[1:-1]  # the last: references
    assert [step.splitlines()[0] for step in steps if not INCLUDED.search(step)] == []
    assert len(INCLUDED.findall(PAGES["theory"])) == PAGES["theory"].count("{literalinclude}")


def test_captions_name_the_object_that_is_shown():
    shown = re.findall(r"\} \.\./(\S+)\n:pyobject: (\S+)\n:caption: (.+)", PAGES["theory"])
    assert len(shown) == PAGES["theory"].count("{literalinclude}")
    for path, name, caption in shown:
        assert caption == f"{path}, {name.removesuffix('.__call__')}"


# -- links ----------------------------------------------------------------------------------------


def _anchors(text):
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_between_pages_lead_to_a_heading(page):
    for target, anchor in re.findall(r"\]\(([\w.]*)#([^)]+)\)", PAGES[page]):
        assert anchor in _anchors(PAGES[target.removesuffix(".md") or page]), (target, anchor)


@every_page
def test_pages_that_are_named_exist_or_are_made(page):
    made = {"gallery/index", "api/index"}
    named = set(re.findall(r"\{doc\}`([^`<]+)`", PAGES[page]))
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", PAGES[page], re.DOTALL):
        entries = [line for line in tree.splitlines() if line and not line.startswith(":")]
        named |= {re.sub(r".*<(.+)>", r"\1", entry) for entry in entries}
    assert named - made - set(PAGES) == set()


def test_every_page_is_in_a_list_of_contents():
    trees = re.findall(r"```\{toctree\}\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
    listed = {re.sub(r".*<(.+)>", r"\1", line) for tree in trees for line in tree.splitlines()}
    assert set(PAGES) - {"index"} - listed == set()


@every_page
def test_objects_that_are_named_exist(page):
    for path in re.findall(r"\{(?:class|func|meth)\}`skvae\.([\w.]+)`", PAGES[page]):
        owner = skvae
        for name in path.split("."):
            owner = getattr(owner, name)


def test_a_link_to_no_file_and_one_to_no_place_are_found(tmp_path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="#top">1</a><a href="b.html#here">2</a><a href="#no">3</a>'
        '<a href="b.html#no">4</a><a href="c.html">5</a><a href="https://example.org">6</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><a href="a.html">1</a>')
    found = internal_links.broken_links(tmp_path)
    assert found == [("a.html", "#no"), ("a.html", "b.html#no"), ("a.html", "c.html")]


# -- the API and the messages ---------------------------------------------------------------------


def test_everything_public_has_a_page():
    offered = api_pages.offered()
    listed = [name for names in api_pages.by_heading(offered).values() for name in names]
    assert sorted(listed) == sorted(offered)
    assert {"VAEImputer", "VAEOutlierDetector", "VAETransformer"} <= set(offered)
    assert set(offered) <= set(skvae.__all__)
    index = "\n".join(api_pages.index_page(offered))
    assert all(f"   skvae.{name}\n" in index + "\n" for name in offered)


def test_the_page_of_an_estimator_has_its_methods_and_names_those_of_scikit_learn():
    page = "\n".join(api_pages.class_page("VAETransformer", VAETransformer))
    own = re.search(r":members: (.+)", page)[1].split(", ")
    assert own == [
        *("fit", "partial_fit", "transform", "inverse_transform", "sample"),
        *("score_samples", "score_features", "score", "component_effects"),
        *(("set_callbacks",) if hasattr(VAETransformer, "set_callbacks") else ()),
    ]
    assert "``set_output``" in page and "``get_params``" in page and "set_fit_request" in page


def test_what_comes_later_has_a_heading_and_a_missing_extra_breaks_nothing(monkeypatch, capsys):
    later = {
        "save": lambda path: None,
        "LatentDisplay": type("LatentDisplay", (), {}),
        "displays": ast,
        "TRUSTED": ("a", "b"),
    }
    assert api_pages.by_heading(later) == {
        "Pictures": ["LatentDisplay"],
        "Functions": ["save"],
        "Modules": ["displays"],
        "Others": ["TRUSTED"],
    }
    monkeypatch.setattr(skvae, "__all__", [*skvae.__all__, "to_nowhere"])
    monkeypatch.setitem(skvae._HOME, "to_nowhere", "._of_an_extra_that_is_not_here")
    assert "to_nowhere" not in api_pages.offered()
    assert "skvae.to_nowhere is left out" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["likelihoods", "priors"])
def test_the_page_of_a_module_has_its_classes(name):
    module = getattr(skvae, name)
    classes = [one.__name__ for one in api_pages.classes_of(module)]
    assert classes[0] in ("Likelihood", "Prior")
    known = {kind.__name__ for kind in getattr(module, name.upper()).values()}
    assert known <= set(classes)


def test_a_warning_that_the_page_silences_exists():
    named = re.findall(r'message="([^"]+)"', PAGES["messages"])
    assert named
    assert all(any(m.text.startswith(one) for m in messages.find_messages()) for one in named)


def test_all_messages_are_listed_once():
    listed = [message for messages_ in messages.listed().values() for message in messages_]
    assert sorted(listed) == sorted(set(messages.find_messages()))
    assert set(messages.SECTIONS) == set(messages.MEANINGS)


# -- the gallery ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_has_a_title_and_text_for_the_gallery(path):
    tree = ast.parse(path.read_text())
    title, line, blank, first, *_ = ast.get_docstring(tree).splitlines()
    assert set(line) == {"="} and len(line) >= len(title) and blank == "" and first
    assert "\n# %%\n# " in path.read_text()
