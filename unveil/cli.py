"""The command line: arguments to a verb, and mistakes to one line."""

from __future__ import annotations

import contextlib
import errno
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, OmitSubcommandPrefixes, PositionalMetavarFromFieldName, subcommand

import unveil
from unveil.errors import UserError, nearest
from unveil.verbs import VERBS

_STYLE = (FlagCreatePairsOff, OmitSubcommandPrefixes, OmitArgPrefixes, PositionalMetavarFromFieldName)
_OVERRIDE = re.compile(r"--([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)+)(?:=(.*))?", re.DOTALL)

_MENDABLE = ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "ENOENT", "ENOTDIR", "EISDIR")
"""Errors of the system that a person can mend: a disk that is full or not theirs to write, a folder that is not there."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one verb. A user's mistake is one line on stderr and exit status 2."""
    try:
        rest, overrides = _split(sys.argv[1:] if args is None else args)
        _parse(rest).run(overrides)
    except KeyboardInterrupt:
        _stop("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe has gone
        sys.stderr.close()
        raise SystemExit(141) from None
    except UserError as error:
        _stop(str(error), 2)
    except OSError as error:
        if errno.errorcode.get(error.errno or 0) not in _MENDABLE:
            raise
        _stop(str(UserError(str(error.filename or "disk"), str(error.strerror), "free some space or choose another place")), 2)


def _stop(line: str, status: int) -> NoReturn:
    print(f"unveil: {line}", file=sys.stderr)
    raise SystemExit(status) from None


def _split(args: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Arguments without and with a dotted key: the latter are settings of the recipe."""
    rest: list[str] = []
    overrides: list[tuple[str, str]] = []
    queue = list(args)
    while queue:
        word = queue.pop(0)
        match = _OVERRIDE.fullmatch(word)
        if not match:
            rest.append(word)
            # the value of an option is no setting, whatever it looks like
            if word in ("--prompt", "--infill") and queue:
                rest.append(queue.pop(0))
            continue
        key, value = match.groups()
        if value is None:
            if not queue:
                raise UserError(word, "has no value", f"write {word} VALUE")
            value = queue.pop(0)
        overrides.append((key, value))
    return rest, overrides


def _parse(args: Sequence[str]) -> Any:
    verbs = {verb.__name__.lower(): verb for verb in VERBS}
    if args and not args[0].startswith("-") and args[0] not in verbs:
        raise UserError(args[0], "is no verb", nearest(args[0], verbs))
    if len(args) > 2 and args[0] == "train" and args[-1] in ("-h", "--help") and not args[1].startswith("-"):
        _settings(args[1])
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(
                _union(), prog="unveil", description=(unveil.__doc__ or "").splitlines()[0], args=args or ["--help"], config=_STYLE
            )
    except SystemExit as stopped:
        if not stopped.code:
            raise
        raise _reduced(errors.getvalue()) from None


def _union() -> Any:
    union: Any = Annotated[VERBS[0], subcommand(VERBS[0].__name__.lower())]
    for verb in VERBS[1:]:
        union = union | Annotated[verb, subcommand(verb.__name__.lower())]
    return union


def _settings(name: str) -> None:
    """Help on every setting of a recipe, with its values as defaults; then leave."""
    from unveil import recipe as recipes

    recipe = recipes.load(name)
    tyro.cli(type(recipe), prog=f"unveil train {name}", args=["--help"], default=recipe, description=f"Settings of the recipe {name}.")


def _reduced(box: str) -> UserError:
    """tyro's message in a box as one line."""
    lines = [line.strip(" │|╭╮╰╯─-+") for line in box.splitlines()[1:]]
    said: list[str] = []
    for line in lines:
        if not line and said:
            break
        if line:
            said.append(line)
    return UserError("command line", " ".join(said) or "not understood", "see --help")


if __name__ == "__main__":
    main()
