"""Formulas as MathML, made when the pages are: no script has to be loaded to show them."""

from docutils import nodes
from latex2mathml.converter import convert


def _inline(writer, node):
    writer.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(writer, node):
    number = f'<span class="eqno">({node["number"]})</span>' if node["number"] else ""
    ids = "".join(f' id="{name}"' for name in node["ids"][:1])
    formula = convert(_aligned(node.astext()), display="block")
    writer.body.append(f'<div class="math"{ids}>{number}{formula}</div>')
    raise nodes.SkipNode


def _aligned(latex):
    """Put a formula of several lines into the environment that aligns them."""
    several = r"\\" in latex and r"\begin" not in latex
    return rf"\begin{{align*}}{latex}\end{{align*}}" if several else latex


def setup(app):
    """Offer the renderer by the name of ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
