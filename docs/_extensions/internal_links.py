"""Links within the built pages are checked: the file is there, and so is the place in it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """The links of a page, and the places that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.places = set(), {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id" or (tag == "a" and name == "name"):
                self.places.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def broken_links(folder):
    """Return what leads nowhere, as (page, link), in all pages of a folder."""
    folder = Path(folder).resolve()
    paths = sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)
    pages = {path: _Page(path) for path in paths}
    broken = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            is_there = target.exists() and (target not in pages or place in pages[target].places)
            if not is_there:
                broken.append((str(path.relative_to(folder)), link))
    return broken


def _check(app, exception):
    from sphinx.util import logging

    if exception is None and app.builder.format == "html":
        for page, link in broken_links(app.outdir):
            logging.getLogger(__name__).warning("%s: the link %s leads nowhere", page, link)


def setup(app):
    """Check the links after the pages are written."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
