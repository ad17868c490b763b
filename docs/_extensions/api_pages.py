"""The pages of the API, written from what the package offers: ``skvae.__all__``.

Each class and function has a page of its own, ``api/skvae.VAETransformer.html``: estimators link
there from their HTML representation. A module, such as ``skvae.priors``, has one for all its
classes. What cannot be imported here, for want of an extra, is left out.
"""

import ast
import inspect
import itertools
import re
import sys
import types
from pathlib import Path

import skvae

HEADINGS = {
    "Estimators": lambda one: inspect.isclass(one) and hasattr(one, "get_params"),
    "Pictures": lambda one: inspect.isclass(one) and one.__name__.endswith("Display"),
    "Functions": inspect.isroutine,
    "Modules": inspect.ismodule,
    "Errors": lambda one: inspect.isclass(one) and issubclass(one, Exception),
    "Others": lambda one: True,
}


def offered():
    """Return the public objects by name, in the order of ``skvae.__all__``."""
    found = {}
    for name in skvae.__all__:
        try:
            found[name] = getattr(skvae, name)
        except ImportError as error:  # an extra that is not installed
            print(f"api: skvae.{name} is left out, because {error}")
    return found


def by_heading(objects):
    """Sort the names of objects under the first heading that fits."""
    rest, sorted_ = dict(objects), {}
    for heading, fits in HEADINGS.items():
        sorted_[heading] = [name for name, one in rest.items() if fits(one)]
        rest = {name: one for name, one in rest.items() if name not in sorted_[heading]}
    return {heading: names for heading, names in sorted_.items() if names}


def own_methods(owner):
    """Return the public methods that a class of the house has, and those of other packages."""
    own, others = [], []
    for name, member in inspect.getmembers(owner, callable):
        if name.startswith("_") or inspect.isclass(member):
            continue
        if re.fullmatch(r"set_\w+_request", name):  # scikit-learn makes it for each class
            others.append(name)
            continue
        base = next(base for base in owner.__mro__ if name in vars(base))
        (own if base.__module__.startswith("skvae") else others).append(name)
    order = [name for base in owner.__mro__ for name in vars(base)]
    return sorted(own, key=order.index), sorted(others)


def class_page(name, owner):
    """Write the page of a class: its docstring, its methods, and the examples that use it."""
    own, others = own_methods(owner)
    lines = [*_head(f"skvae.{name}"), "", ".. currentmodule:: skvae", "", f".. autoclass:: {name}"]
    lines += [f"   :members: {', '.join(own)}"] if own else []
    lines += ["", f".. minigallery:: skvae.{name}", "   :add-heading: Examples", ""]
    if others:
        listed = ", ".join(f"``{other}``" for other in others)
        lines += [f".. rubric:: Methods of scikit-learn's conventions\n\n{listed}."]
    return lines


def module_page(name, module):
    """Write the page of a module: its docstring, and its classes with what they introduce."""
    lines = [*_head(f"skvae.{name}"), "", f".. automodule:: skvae.{name}"]
    for owner in classes_of(module):
        base = next((b for b in owner.__mro__[1:] if b.__module__.startswith("skvae")), None)
        new = [n for n in own_methods(owner)[0] if n in vars(owner) and not hasattr(base, n)]
        lines += ["", *_head(owner.__name__, "-"), "", f".. autoclass:: {owner.__name__}"]
        lines += [f"   :members: {', '.join(new)}"] if new else []
    functions = [n for n in getattr(module, "__all__", []) if inspect.isroutine(vars(module)[n])]
    return lines + [f"\n.. autofunction:: {function}" for function in functions]


def classes_of(module):
    """Return the public classes that a module defines, the interface first."""
    names = getattr(module, "__all__", sorted(vars(module)))
    found = [getattr(module, name) for name in names if not name.startswith("_")]
    own = [
        one
        for one in dict.fromkeys(filter(inspect.isclass, found))
        if one.__module__.startswith(("skvae.likelihoods", module.__name__))
        or (hasattr(module, "__all__") and one.__module__.startswith("skvae"))
    ]
    return sorted(own, key=lambda one: not inspect.isabstract(one))


def data_page(name, value):
    """Write the page of a constant: the text below it in the source, and its values."""
    lines = [*_head(f"skvae.{name}"), "", f".. py:data:: skvae.{name}", ""]
    lines += [f"   {line}".rstrip() for line in text_below(name).splitlines()]
    if isinstance(value, list | tuple):
        lines += ["", *(f"   - ``{one!r}``" for one in value)]
    return lines


def text_below(name):
    """Return the string that follows the assignment of a constant, where its home has one."""
    home = sys.modules[f"skvae{skvae._HOME[name]}"]
    for one, after in itertools.pairwise(ast.parse(inspect.getsource(home)).body):
        is_it = isinstance(one, ast.Assign) and getattr(one.targets[0], "id", "") == name
        if is_it and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            return inspect.cleandoc(after.value.value)
    return ""


def index_page(objects):
    """Write the list of all pages."""
    lines = [*_head("API"), "", ".. currentmodule:: skvae"]
    for heading, names in by_heading(objects).items():
        lines += ["", *_head(heading, "-")]
        constants = [name for name in names if not hasattr(objects[name], "__name__")]
        described = [name for name in names if name not in constants]
        lines += (
            ["", ".. autosummary::", "", *(f"   {name}" for name in described)] if described else []
        )
        lines += ["", *(f"- :py:data:`skvae.{name}`" for name in constants)]
    pages = [f"   skvae.{name}" for name in objects]
    return [*lines, "", ".. toctree::", "   :hidden:", "", *pages]


def write_pages(app):
    """Write all pages into the source folder, those that changed."""
    folder, objects = Path(app.srcdir) / "api", offered()
    pages = {"index": index_page(objects)}
    for name, one in objects.items():
        if isinstance(one, types.ModuleType):
            pages[f"skvae.{name}"] = module_page(name, one)
        elif inspect.isclass(one):
            pages[f"skvae.{name}"] = class_page(name, one)
        elif inspect.isroutine(one):
            pages[f"skvae.{name}"] = [
                *_head(f"skvae.{name}"),
                "",
                f".. autofunction:: skvae.{name}",
            ]
        else:
            pages[f"skvae.{name}"] = data_page(name, one)
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.rst"):
        if old.stem not in pages:
            old.unlink()
    for name, lines in pages.items():
        path, text = folder / f"{name}.rst", "\n".join(lines) + "\n"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _head(text, underline="="):
    return [text, len(text) * underline]


def setup(app):
    """Write the pages before Sphinx looks for them."""
    app.connect("builder-inited", write_pages, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
