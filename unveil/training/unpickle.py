"""A pickle reader that builds only what is on a list: a file from a stranger must not be able to run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from typing import IO, Any

from unveil.errors import UserError


class Inert:
    """What stands for an object that is not on the list, where the rest of the file is wanted: it takes everything and does nothing."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """Nothing is kept."""

    def __setstate__(self, state: Any) -> None:
        """Nothing is kept."""

    def __call__(self, *args: Any, **named: Any) -> Inert:
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing is kept."""

    def append(self, item: Any) -> None:
        """Nothing is kept."""

    extend = append


class _Restricted(pickle.Unpickler):
    def __init__(self, file: IO[bytes], allowed: Collection[str], storage: Callable[[Any], Any] | None, lenient: bool) -> None:
        super().__init__(file)
        self._allowed, self._storage, self._lenient = allowed, storage, lenient

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self._allowed:
            return super().find_class(module, name)
        if self._lenient:
            return type(name, (Inert,), {})
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to another file")
        return self._storage(pid)


def load(file: IO[bytes], allowed: Collection[str], source: str, storage: Callable[[Any], Any] | None = None, lenient: bool = False) -> Any:
    """Unpickle ``file``, where every global it may name is in ``allowed`` (as ``module.name``).

    Args:
        storage: what a reference to data outside of the pickle stands for.
        lenient: put an ``Inert`` for every other global instead of refusing the file.

    Raises UserError naming ``source`` for a global that is not, before it is imported, and for bytes that are no pickle.
    """
    try:
        return _Restricted(file, allowed, storage, lenient).load()
    except UserError:
        raise
    except pickle.UnpicklingError as e:
        raise UserError(source, f"refused: {e}", "take checkpoints only from whom you trust; get a clean copy") from e
    except Exception as e:  # a damaged pickle fails in any way: EOFError, ValueError, AttributeError, IndexError, UnicodeDecodeError
        raise UserError(source, f"is corrupted ({type(e).__name__})", "delete its folder and resume from an older checkpoint") from e
