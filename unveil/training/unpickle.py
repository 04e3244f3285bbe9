"""A pickle reader that builds only what is on a list: a file from a stranger must not be able to run code."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from typing import IO, Any

from unveil.errors import UserError


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Collection[str]) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def load(file: IO[bytes], allowed: Collection[str], source: str) -> Any:
    """Unpickle ``file``, where every global it may name is in ``allowed`` (as ``module.name``).

    Raises UserError naming ``source`` for a global that is not, before it is imported, and for bytes that are no pickle.
    """
    try:
        return _Restricted(file, allowed).load()
    except pickle.UnpicklingError as e:
        raise UserError(source, f"refused: {e}", "take checkpoints only from whom you trust; get a clean copy") from e
    except Exception as e:  # a damaged pickle fails in any way: EOFError, ValueError, AttributeError, IndexError, UnicodeDecodeError
        raise UserError(source, f"is corrupted ({type(e).__name__})", "delete its folder and resume from an older checkpoint") from e
