"""The README promises only what runs: its Python runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PAGES = [
    p for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")] if p.exists()
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_readmes_python_runs(number):
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
