"""Formulas as MathML, which browsers draw themselves: no script is fetched, and the book reads the same offline."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def _mathml(self, node, *, block):
    try:
        return tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        log.warning("formula %r cannot be written as MathML: %s", node.astext(), error, location=node)
        return f"<code>{self.encode(node.astext())}</code>"


def _inline(self, node):
    self.body.append(_mathml(self, node, block=False))
    raise nodes.SkipNode


def _block(self, node):
    self.body.append(f'<div class="math-block">{_mathml(self, node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app):
    """Register the renderer under the name that _config.yml asks for."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
