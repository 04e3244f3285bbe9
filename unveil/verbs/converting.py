"""The verb that changes a model's form: convert."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from unveil.verbs.shared import Overrides, no_settings


@dataclass(frozen=True)
class Convert:
    """Write a model of images as a folder that diffusers reads, or such a folder as one of ours; one of text as transformers reads.

    An adapter is merged into its base."""

    source: Positional[str]
    """A run directory, a folder with an exported model, or a folder of diffusers."""
    destination: Positional[str]
    """The folder to write, which must not exist."""
    to: Literal["unveil", "diffusers", "hf"] | None = None
    """The form; of text hf, of images the other one than the source has, if not given."""

    def run(self, overrides: Overrides) -> None:
        no_settings(overrides, "convert")
        from unveil.convert import convert

        print(convert(self.source, self.destination, self.to, lambda line: print(line, file=sys.stderr)).resolve().as_uri())
