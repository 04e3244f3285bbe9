"""Masked spans of held-out functions, filled and judged: the exact truth, and whether the function still parses.

A span is a statement on one line or an expression. How a model fills it is the model's affair: whoever asks it makes the fillings.
"""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

EXPRESSIONS = (ast.Call, ast.Compare, ast.BinOp, ast.BoolOp, ast.Subscript, ast.Attribute, ast.ListComp, ast.Tuple, ast.List, ast.Dict)
SHORTEST, LONGEST = 4, 60
"""Characters of a span."""


@dataclass(frozen=True)
class Gap:
    """A function with a hole: ``before + truth + after`` is the source, dedented."""

    name: str
    before: str
    truth: str
    after: str


@dataclass(frozen=True)
class Filling:
    gap: Gap
    text: str

    @property
    def exact(self) -> bool:
        return self.text == self.gap.truth

    @property
    def parses(self) -> bool:
        return parses(self.gap.before + self.text + self.gap.after)


def parses(source: str) -> bool:
    """Whether Python's own parser takes the source."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def functions(source: str) -> Iterator[tuple[str, str]]:
    """``(name, text)`` of every outermost function and method of a module, dedented; none where the module does not parse."""
    if not parses(source):
        return
    lines = source.splitlines(keepends=True)
    todo: list[ast.AST] = list(reversed(ast.parse(source).body))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
            if parses(text):  # a string across lines may not survive the dedent
                yield node.name, text
        else:
            todo.extend(child for child in reversed(list(ast.iter_child_nodes(node))) if isinstance(child, ast.stmt))


def spans(function: str) -> list[tuple[int, int]]:
    """``[begin, end)`` in characters of every line with a whole statement and every expression on one line that may be masked.

    The signature and the docstring stay.
    """
    tree = ast.parse(function).body[0]
    assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
    lines = function.splitlines(keepends=True)
    offsets = np.cumsum([0, *map(len, lines)])
    found = set()
    for statement in tree.body[1:] if ast.get_docstring(tree) is not None else tree.body:
        for node in ast.walk(statement):
            simple = isinstance(node, ast.stmt) and not hasattr(node, "body")
            if not (simple or isinstance(node, EXPRESSIONS)) or not isinstance(node, ast.stmt | ast.expr) or node.end_lineno != node.lineno:
                continue
            line = lines[node.lineno - 1]
            # the parser counts columns in bytes of UTF-8
            begin, end = (len(line.encode()[:at].decode()) for at in (node.col_offset, node.end_col_offset or 0))
            if SHORTEST <= end - begin <= LONGEST:
                found.add((int(offsets[node.lineno - 1]) + begin, int(offsets[node.lineno - 1]) + end))
    return sorted(found)


def gaps(documents: Iterable[tuple[str, str]], count: int, seed: int, fits: Callable[[Gap], bool]) -> list[Gap]:
    """At most ``count`` gaps, one per function, drawn without replacement from ``(name, source)`` documents; the same for a seed."""
    candidates = [
        (f"{name}: {function}", text, places)
        for name, source in documents
        for function, text in functions(source)
        if len(text) < 4096 and (places := spans(text))
    ]
    rng = np.random.default_rng(seed)
    chosen: list[Gap] = []
    for index in rng.permutation(len(candidates)):
        if len(chosen) == count:
            break
        name, text, places = candidates[index]
        begin, end = places[rng.integers(len(places))]
        gap = Gap(name, text[:begin], text[begin:end], text[end:])
        if fits(gap):
            chosen.append(gap)
    return chosen
