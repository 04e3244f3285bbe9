from __future__ import annotations

import ast

import pytest

from unveil.evaluation.infill import Filling, Gap, functions, gaps, parses, spans

SOURCE = '''"""A module."""
import os

def area(width, height=1):
    """Not to be masked: a call(inside) the docstring."""
    size = width * height
    if size > 10:
        return os.path.join("ä", str(size))
    return size

class Box:
    @property
    def side(self):
        def inner(x):
            return x + 1
        return inner(self.length)
'''


def test_functions_are_outermost_and_dedented() -> None:
    found = dict(functions(SOURCE))
    assert list(found) == ["area", "side"]
    assert found["side"].startswith("def side(self):\n    def inner(x):\n        return")
    assert all(parses(text) for text in found.values())
    assert list(functions("def broken(:")) == []


def test_spans_are_statements_and_expressions_without_signature_and_docstring() -> None:
    text = dict(functions(SOURCE))["area"]
    masked = {text[a:b] for a, b in spans(text)}
    assert {"size = width * height", "width * height", "size > 10", "str(size)", "return size"} <= masked
    assert 'os.path.join("ä", str(size))' in masked  # columns are bytes for the parser and characters for us
    assert not any("docstring" in span or "height=1" in span for span in masked)


def test_gaps_are_deterministic_distinct_and_whole() -> None:
    documents = [(f"m{i}.py", SOURCE.replace("area", f"area{i}").replace("side", f"side{i}")) for i in range(10)]
    first, again = (gaps(documents, 8, 3, lambda gap: True) for _ in range(2))
    assert first == again != gaps(documents, 8, 4, lambda gap: True)
    assert len({gap.name for gap in first}) == 8
    for gap in first:
        ast.parse(gap.before + gap.truth + gap.after)
        assert gap.truth
    assert gaps(documents, 8, 3, lambda gap: "side" in gap.name and len(gap.before) < 40) == []


@pytest.mark.parametrize(
    ("text", "exact", "ok"), [("size > 10", True, True), ("a.b", False, True), ("a b", False, False), ("\0", False, False)]
)
def test_judgement(text: str, exact: bool, ok: bool) -> None:
    filling = Filling(Gap("f", "def f(a, size):\n    if ", "size > 10", ":\n        pass\n"), text)
    assert (filling.exact, filling.parses) == (exact, ok)
