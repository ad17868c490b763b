"""The list of all errors and warnings that a user of skvae may see, read from its source.

``find_messages`` walks the syntax trees of the package: every error that is made with a text, and
every warning. The directive ``messages`` shows them in the docs, and ``tests/test_messages.py``
holds each of them against the tests. What a user cannot trigger is an ``assert`` or an
AssertionError, or has a comment that begins with ``# internal`` on its line.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parents[2] / "skvae"
FEWEST_WORDS = 2  # of a text that says something on its own

# Texts that one function makes and another says: the hole in the message, and the functions and
# constants that fill it.
MADE_ELSEWHERE = {
    "history.undone": ["_undone"],
    "column.remark": ["look_among", "_numbers_among", "ROUNDED", "TINY", "EMPTY"],
    "' '.join(wrong)": ["refused"],
}
# Errors that another one quotes: where a file is read, they say what somebody has changed in it.
# {class: where it is quoted}
QUOTED_IN = {
    "ValueError": ("_files/", "_table/plain", "_table/stored"),
    "NotPlainError": ("_files/", "_table/plain", "_table/stored"),
    "UntranslatedError": ("_onnx/",),
    "Lost": ("_cluster/",),
    "Paused": ("_cluster/",),
    "Interrupted": ("_cluster/",),
}
WRAPPED = {"FileError": ("{target} cannot be loaded: ", ".")}  # by skvae.load

OTHERS = "Other messages"
# The headings of the list, and the files and wings whose messages stand under each.
SECTIONS = {
    "Parameters": ["_parameters", "_composed"],
    "Rows and columns": ["_inputs", "_table/", "likelihoods/_names"],
    "Fits": ["_fitting", "_preparing", "_health", "_start/", "_training/"],
    "Several processes": ["_sharded", "_together", "distributed"],
    "Dask": ["_cluster/", "dask"],
    "Results in files": ["_parquet"],
    "Fitted models": [
        "_fitted",
        "_transformer",
        "_conditions",
        "_inference/",
        "likelihoods/_mixed",
    ],
    "Outliers": ["_outlier"],
    "Imputation": ["_imputer"],
    "Likelihoods and priors of your own": ["likelihoods/", "priors"],
    "Effects and pictures": ["_effects", "displays/"],
    "Files": ["_files/", "_persistence"],
    "ONNX": ["_onnx/"],
    "Names and versions": ["_versions", "__init__"],
    OTHERS: [],
}
MEANINGS = {
    "Several processes": "A fit by several processes cannot begin, or go on.",
    "Dask": "A Dask cluster cannot do what it was asked for.",
    "Results in files": "What is found of rows cannot be written.",
    "Parameters": "A parameter of an estimator, a likelihood or a prior is not admissible.",
    "Rows and columns": "What X holds, or the form in which it comes, does not fit the model.",
    "Fits": "A fit cannot go on, or something about its result is worth knowing.",
    "Fitted models": "A call of a fitted model has no meaning, or its result is uncertain.",
    "Outliers": "What is asked of a detector cannot be had.",
    "Imputation": "What is asked of an imputer cannot be had.",
    "Likelihoods and priors of your own": "A class that you wrote breaks the interface.",
    "Effects and pictures": "What is asked of effects or of a display cannot be had.",
    "Files": "An estimator cannot be stored, or a file not be loaded: it was damaged or changed.",
    "ONNX": "A fitted estimator, or this method of it, cannot be an ONNX graph.",
    "Names and versions": "A name does not exist, or a file comes from another version.",
    OTHERS: "What else there is to say.",
}


class Hole(str):
    """The name of what a message puts in."""


class Message(NamedTuple):
    """A message as the source has it.

    In ``text`` the names of what is put in stand in braces; ``literals`` are the texts between.
    """

    file: str  # as the house names it: "_table/column"
    line: int
    kind: str  # "ValueError"
    text: str
    literals: tuple[str, ...]


class Text(NamedTuple):
    """An expression whose value is text, and the function or file that its names belong to."""

    expression: ast.expr
    scope: ast.AST


def words_of(text: str) -> list[str]:
    """Split a text into its words and numbers, without punctuation."""
    return re.findall(r"\w+", text)


def section_of(file: str) -> str:
    """Return the heading under which the messages of a file are listed."""
    wing = file[: file.find("/") + 1]
    rooms = {room: section for section, rooms in SECTIONS.items() for room in rooms}
    return rooms.get(file) or rooms.get(wing, OTHERS)


@cache
def find_messages(package: Path = PACKAGE) -> tuple[Message, ...]:
    """Find all messages of a package, file by file."""
    return tuple(m for file in House(package).files.values() for m in file.messages())


class House:
    """All files of a package."""

    def __init__(self, package: Path) -> None:
        paths = {str(p.relative_to(package).with_suffix("")): p for p in package.rglob("*.py")}
        self.files = {name: File(self, name, paths[name]) for name in sorted(paths)}

    @cached_property
    def made(self) -> dict[str, list[Text]]:
        """The texts that each function, constant and class of errors has, by name."""
        made: dict[str, list[Text]] = {}
        for file in self.files.values():
            for name, node in file.makers():
                made.setdefault(name, []).extend(texts_in(node))
        return made

    @cached_property
    def numbers(self) -> dict[str, str]:
        """The numbers that have names, as text."""
        return {
            node.targets[0].id: str(node.value.value)
            for file in self.files.values()
            for node in file.tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, int | float)
        }

    @cached_property
    def internal(self) -> set[str]:
        """The errors of the house that no user meets, as their docstring says."""
        classes = [node for file in self.files.values() for node in file.nodes(ast.ClassDef)]
        return {one.name for one in classes if "Internal: " in (ast.get_docstring(one) or "")}

    def spelt(self, text: Text) -> list[list[str]]:
        """Return what a text may say: literal parts and holes, once for each variant."""
        variants: list[list[str]] = [[]]
        for part, node in parts_of(text.expression):
            ways = [[part]]
            if isinstance(part, Hole):
                options = [
                    way for one in self._options(node, text.scope) for way in self.spelt(one)
                ]
                ways = options or [[self.numbers.get(part, part)]]
            variants = [before + way for before in variants for way in ways]
        return variants

    def _options(self, node: ast.expr, scope: ast.AST) -> list[Text]:
        """Return what may stand in a hole, where that is text of the house's own."""
        made_by = MADE_ELSEWHERE.get(ast.unparse(node), [])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            made_by = [node.func.id]
        if isinstance(node, ast.Name) and node.id.isupper():
            made_by = [node.id]
        if made_by or not isinstance(node, ast.Name):
            return [text for name in made_by for text in self.made.get(name, [])]
        assigned = [one for one in ast.walk(scope) if node.id in _targets(one)]
        return [text._replace(scope=scope) for one in assigned for text in texts_in(one.value)]


class File:
    """One file: its tree, and what it says."""

    def __init__(self, house: House, name: str, path: Path) -> None:
        self.house, self.name = house, name
        source = path.read_text()
        self.lines = source.splitlines()
        self.tree = ast.parse(source)
        self._all = [*ast.walk(self.tree)]

    def nodes(self, kind: type) -> Iterator:
        """Yield the nodes of a kind."""
        return (node for node in self._all if isinstance(node, kind))

    def is_internal(self, node: ast.AST) -> bool:
        """Whether a comment says that no user meets it."""
        return "# internal" in self.lines[node.lineno - 1]

    def makers(self) -> Iterator[tuple[str, ast.AST]]:
        """Yield what may make a text: functions, constants, and classes with a ``__str__``."""
        yield from ((node.name, node) for node in self.nodes(ast.FunctionDef))
        yield from ((n, node) for node in self.tree.body for n in _targets(node))
        for owner in self.nodes(ast.ClassDef):
            yield from ((owner.name, f) for f in owner.body if getattr(f, "name", "") == "__str__")

    def messages(self) -> Iterator[Message]:
        """Yield what is raised or warned of, with a message for each of its variants."""
        scopes: dict[int, ast.AST] = {}
        for function in self.nodes(ast.FunctionDef):  # outer ones come first
            scopes |= {id(node): function for node in ast.walk(function)}
        for node in self._speakers():
            scope = scopes.get(id(node), self.tree)
            said = self._said if isinstance(node, ast.Call) else self._advised
            kind, texts = said(node, scope)
            quoted = self.name.startswith(QUOTED_IN.get(kind, ()))
            for text in [] if quoted or self.is_internal(node) else texts:
                for parts in self.house.spelt(text):
                    shown = "".join(f"{{{p}}}" if isinstance(p, Hole) else p for p in parts)
                    before, after = WRAPPED.get(kind, ("", ""))
                    if not before or not shown.startswith(before):
                        whole = before + shown + after
                        yield Message(self.name, node.lineno, kind, whole, merged(parts))

    def _speakers(self) -> list[Any]:
        """Return what may make a message: calls, and pairs of a text and a class of warnings."""
        lists = [one for one in self.nodes(ast.ListComp) if _is_advice(one.elt)]
        listed = {id(one.elt) for one in lists}
        pairs = [one for one in self.nodes(ast.Tuple) if _is_advice(one) and id(one) not in listed]
        return sorted([*self.nodes(ast.Call), *lists, *pairs], key=lambda node: node.lineno)

    def _advised(self, node: Any, scope: ast.AST) -> tuple[str, list[Text]]:
        """Return the class and the text of a pair, or of a list of pairs of one class."""
        if isinstance(node, ast.ListComp):
            return node.elt.elts[1].id, [Text(node.generators[0].iter, scope)]
        return node.elts[1].id, [Text(node.elts[0], scope)]

    def _said(self, call: ast.Call, scope: ast.AST) -> tuple[str, list[Text]]:
        """Return the class of an error or a warning and its text; none if the call makes none."""
        name, first = ast.unparse(call.func), call.args[0] if call.args else None
        if first is None or name not in ("warn", "warnings.warn"):
            is_error = re.fullmatch(r"(?!Assertion)[A-Z]\w*Error", name)
            says = first is not None and is_error and name not in self.house.internal
            return name, [Text(first, scope)] if says else []
        if isinstance(first, ast.Call):  # an instance of a warning that makes its own text
            return ast.unparse(first.func), self.house.made[ast.unparse(first.func)]
        kind = ast.unparse(call.args[1]) if len(call.args) > 1 else "UserWarning"
        # A class that the code looks up belongs to a text that is found where the two are paired.
        return kind, [Text(first, scope)] if kind.endswith("Warning") else []


def _is_advice(node: ast.AST) -> bool:
    """Whether it is a pair of a text and a class of warnings."""
    is_pair = isinstance(node, ast.Tuple) and len(node.elts) == 2
    return is_pair and isinstance(node.elts[1], ast.Name) and node.elts[1].id.endswith("Warning")


def _targets(node: ast.AST) -> list[str]:
    """Return the plain names that a statement assigns to."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def texts_in(node: ast.AST) -> list[Text]:
    """Return the strings of some words in a function or an expression, longer ones whole.

    Neither its docstring nor what a function gives a name of its own, which is part of another
    text, as is what begins with a space.
    """
    if isinstance(node, ast.FunctionDef):
        silent = [node.body[0], *(one for one in ast.walk(node) if isinstance(one, ast.Assign))]
        inside = {
            id(part) for one in silent if not isinstance(one, ast.Return) for part in ast.walk(one)
        }
    else:
        inside = set()
    texts = []
    for one in ast.walk(node):
        if id(one) in inside or not isinstance(one, ast.Constant | ast.JoinedStr | ast.BinOp):
            continue
        parts = [part for part, _ in parts_of(one)]
        goes_on = bool(parts) and parts[0].startswith(" ")
        literal = "".join(part for part in parts if not isinstance(part, Hole))
        if len(words_of(literal)) >= FEWEST_WORDS and not goes_on:
            inside |= {id(part) for part in ast.walk(one)}
            texts.append(Text(one, node))
    return texts


def parts_of(node: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    """Yield the literal texts and the holes of an expression, with their nodes."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value, node
    elif isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from parts_of(value.value if isinstance(value, ast.FormattedValue) else value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        yield from parts_of(node.left)
        yield from parts_of(node.right)
    elif isinstance(node, ast.Call) and isinstance(getattr(node.func, "value", 0), ast.JoinedStr):
        yield from parts_of(node.func.value)  # a text that is cleaned up
    else:
        named = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "...")
        yield Hole(named), node


def merged(parts: list[str]) -> tuple[str, ...]:
    """Return the literal texts that hold words, those side by side as one."""
    literals = [""]
    for part in parts:
        if isinstance(part, Hole):
            literals.append("")
        else:
            literals[-1] += part
    return tuple(text for text in literals if words_of(text))


# -- the directive --------------------------------------------------------------------------------


def listed() -> dict[str, list[Message]]:
    """Return the messages under their headings, those of one line once where they are equal."""
    found = dict.fromkeys(find_messages())
    return {
        section: [message for message in found if section_of(message.file) == section]
        for section in SECTIONS
    }


def setup(app: Any) -> dict[str, bool]:
    """Offer the directive ``messages``: a section for each heading, an item for each message."""
    from docutils import nodes
    from docutils.parsers.rst import Directive

    def item(message: Message) -> nodes.list_item:
        words = [nodes.literal(text=message.kind), nodes.Text(": ")]
        for number, part in enumerate(re.split(r"\{([\w.]+)\}", message.text)):
            named = nodes.emphasis(text=part.strip("_").replace("_", " ").replace("...", "…"))
            words.append(named if number % 2 else nodes.Text(part))
        return nodes.list_item("", nodes.paragraph("", "", *words))

    class Messages(Directive):
        def run(self) -> list[nodes.Node]:
            sections = []
            for heading, messages in listed().items():
                if messages:
                    section = nodes.section(ids=[nodes.make_id(heading)], names=[heading.lower()])
                    section += nodes.title(text=heading)
                    section += nodes.paragraph(text=MEANINGS[heading])
                    section += nodes.bullet_list("", *map(item, messages))
                    sections.append(section)
            return sections

    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
