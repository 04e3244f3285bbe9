from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from unveil.errors import UserError
from unveil.training import unpickle


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_a_global_off_the_list_is_refused_and_not_run(tmp_path: Path) -> None:
    data = pickle.dumps([1, Hostile(tmp_path / "ran")])
    with pytest.raises(UserError, match=r"evil: refused: it asks for (posix|nt)\.mkdir"):
        unpickle.load(io.BytesIO(data), {"pathlib.PosixPath"}, "evil")
    assert not (tmp_path / "ran").exists()


def test_what_is_on_the_list_loads() -> None:
    value = {"path": Path("a/b"), "n": (1, 2.5)}
    kind = type(value["path"])
    assert unpickle.load(io.BytesIO(pickle.dumps(value)), {f"{kind.__module__}.{kind.__qualname__}"}, "x") == value


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps({"a": 1})[:-3]])
def test_what_is_no_pickle_is_a_users_error(data: bytes) -> None:
    with pytest.raises(UserError, match="x: "):
        unpickle.load(io.BytesIO(data), set(), "x")
