"""The one error a user may see: a line that names the field, what it got, what was wanted and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake outside unveil's code: a wrong key, a corrupt file, a prompt that does not fit.

    The command line prints it as one line on stderr and exits with status 2; from Python it is an ordinary exception.

    Args:
        field: what is wrong, as the user knows it (``training.steps``, a file's path).
        problem: what it got and what was wanted.
        remedy: what to do about it.
    """

    def __init__(self, field: str, problem: str, remedy: str) -> None:
        self.field, self.problem, self.remedy = field, problem, remedy
        super().__init__(" ".join(f"{field}: {problem}; {remedy}".split()))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str, str]]:
        """Worker processes hand their errors over pickled."""
        return UserError, (self.field, self.problem, self.remedy)


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the nearest known name, or the list of known names where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(names)
