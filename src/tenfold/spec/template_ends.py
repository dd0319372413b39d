"""Find the text that ends an answer in a chat template. The template is only parsed and never run, since it may be untrusted."""

from collections.abc import Iterator

import jinja2
from jinja2 import nodes
from jinja2.ext import loopcontrols

_OTHERS = {"user", "system", "tool", "ipython"}
_CONTENT = None  # stands for a message's content among the pieces of a template


def ends_of_answers(template: str) -> list[str]:
    """The constant texts that a template can write directly after an assistant's content, as the end of the message.

    Variables such as `eos_token` are not among them. An invalid template gives an empty list.
    """
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    try:
        body = environment.parse(template.replace("{% generation %}", "").replace("{% endgeneration %}", "")).body
    except (jinja2.TemplateError, RecursionError):
        return []
    return list(dict.fromkeys(_after_content(body, [])))


def _after_content(body: list[nodes.Node], rest: list[nodes.Node]) -> Iterator[str]:
    """The constant texts that follow a message's content in the nodes `body`, which the nodes `rest` follow."""
    for at, node in enumerate(body):
        after = body[at + 1 :] + rest
        if isinstance(node, nodes.Output):
            pieces = list(_pieces(node))
            for i, piece in enumerate(pieces):
                if piece is _CONTENT:
                    yield from _last(pieces[i + 1 :], after, [])
        elif isinstance(node, nodes.If):
            if not _is_of_another_role(node.test):
                yield from _after_content(node.body, after)
            yield from _after_content([*node.elif_, *node.else_], after)
        elif isinstance(node, nodes.For):
            yield from _after_content(node.body, [])  # each iteration of a loop writes one message


def _last(pieces: list[str | None], after: list[nodes.Node], beyond: list[nodes.Node]) -> Iterator[str]:
    """The first constant text in `pieces`, or in the nodes `after` them, if all that follows it, in the nodes `beyond` too, can be
    empty or white space.

    Each node is visited once, and not once for each path through the branches before it.
    """
    for at, piece in enumerate(pieces):
        if piece is _CONTENT or (piece.strip() and not _can_be_silent(pieces[at + 1 :], after + beyond)):
            return
        if piece.strip():
            yield piece.strip()
            return
    for at, node in enumerate(after):
        rest = after[at + 1 :] + beyond
        if isinstance(node, nodes.If):
            for branch in (node.body, [*node.elif_, *node.else_]):
                yield from _last([], branch, rest)
        elif isinstance(node, nodes.Output):
            yield from _last(list(_pieces(node)), [], rest)
        if not isinstance(node, nodes.For) and not _can_be_silent([], [node]):
            return


def _can_be_silent(pieces: list[str | None], after: list[nodes.Node]) -> bool:
    """Whether some choice of branches lets the pieces and the nodes `after` them write only white space."""
    if any(piece is _CONTENT or piece.strip() for piece in pieces):
        return False
    for node in after:
        if isinstance(node, nodes.Output) and not _can_be_silent(list(_pieces(node)), []):
            return False
        if isinstance(node, nodes.For) and not _can_be_silent([], node.body):
            return False
        branches = (node.body, [*node.elif_, *node.else_]) if isinstance(node, nodes.If) else ()
        if branches and not any(_can_be_silent([], branch) for branch in branches):
            return False
    return True


def _pieces(node: nodes.Node) -> Iterator[str | None]:
    """The parts of an output: constant texts, `_CONTENT` for a message's content, and `{{ }}` for everything else."""
    if isinstance(node, nodes.Output | nodes.Add | nodes.Concat):
        for child in node.iter_child_nodes():
            yield from _pieces(child)
    elif isinstance(node, nodes.TemplateData):
        yield node.data
    elif isinstance(node, nodes.Const):
        yield str(node.value)
    else:
        yield _CONTENT if _is_content(node) else "{{ }}"


def _is_content(node: nodes.Node) -> bool:
    here = (
        (isinstance(node, nodes.Name) and node.name == "content")
        or (isinstance(node, nodes.Getattr) and node.attr == "content")
        or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content")
    )
    return here or any(map(_is_content, node.iter_child_nodes()))


def _is_of_another_role(test: nodes.Node) -> bool:
    words = {const.value for const in test.find_all(nodes.Const) if isinstance(const.value, str)}
    if isinstance(test, nodes.Not):
        return False
    return bool(words & _OTHERS) and "assistant" not in words
