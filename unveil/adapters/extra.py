"""The libraries of the extra ``adapters``, imported when they are asked for, without what they print to a terminal."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from unveil.errors import UserError

TALKATIVE = ("torchao", "torch.utils._pytree")
"""Loggers that speak while these are imported: of kernels for other machines, and of a change that concerns their authors."""


def library(name: str, field: str) -> ModuleType:
    """The module ``name``. Raises UserError, about ``field``, where it is not installed or does not fit the versions that are."""
    with _quiet():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            package = name.partition(".")[0]
            why = "is not installed" if getattr(error, "name", None) == package else f"cannot be imported ({error})"
            raise UserError(field, f"wants {package}, which {why}", "pip install 'unveil[adapters]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
