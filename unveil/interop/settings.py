"""Another library's config.json as what it means: its defaults filled in, what we cannot do refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unveil.errors import UserError


class Settings:
    """A config over its class's defaults.

    Args:
        given: the JSON object; keys that begin with an underscore are notes of its writer.
        defaults: every setting of the class, by name, with the value it has where it is left out.
        source: the file, for messages.

    Raises:
        UserError: a setting that is not the class's, unless it is null or false and so asks for nothing.
    """

    def __init__(self, given: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
        self.source = source
        for key, value in given.items():
            if not key.startswith("_") and key not in defaults and value not in (None, False):
                raise self.refusal(key, value, "no such setting is known here")
        self._values = {**defaults, **{key: value for key, value in given.items() if key in defaults}}

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def require(self, key: str, *allowed: Any) -> Any:
        """The value, if it is one of ``allowed``. Raises UserError."""
        value = self[key]
        if value not in allowed:
            raise self.refusal(key, value, "only " + " or ".join(map(_shown, allowed)) + " is supported")
        return value

    def number(self, key: str) -> float:
        """The value, if it is a number. Raises UserError."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, value, "a number is wanted")
        return value

    def count(self, key: str) -> int:
        """The value, if it is a whole number above 0. Raises UserError."""
        value = self[key]
        if type(value) is not int or value < 1:
            raise self.refusal(key, value, "a whole number above 0 is wanted")
        return value

    def refusal(self, key: str, value: Any, reason: str) -> UserError:
        return UserError(self.source, f"{key} is {_shown(value)}, {reason}", "convert a model without it, or correct the file")


def _shown(value: Any) -> str:
    return (
        "null"
        if value is None
        else f"'{value}'"
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
