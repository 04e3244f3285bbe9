"""What a sampler has uncovered so far, as text: decoded when asked for, never changed by a later step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from unveil.autoregressive.speculative import acceptance
from unveil.canvas import Canvas
from unveil.data.tokenizer import Tokenizer
from unveil.family import Row, TokenTimeline
from unveil.report.timeline import timeline
from unveil.text.stop import StopStrings


class Piece(NamedTuple):
    """A stretch of text and the step at which it was committed; 0 for what was given, -1 for what is still covered."""

    text: str
    committed_at: int
    confidence: float = 1.0
    """Probability of it at that step."""


@dataclass(frozen=True)
class TextSnapshot:
    """All rows of a call of ``Run.sample`` after a step; rows that were done before it stand as they ended.

    ``text``, ``completion`` and ``tokens`` are one item for one row asked for by a single prompt, else a list with one per row.
    """

    step: int
    rows: Sequence[Row]
    canvases: Sequence[Canvas]
    tokenizer: Tokenizer
    stop: StopStrings | None
    single: bool

    @property
    def final(self) -> bool:
        """Whether every row is done."""
        return all(row.final for row in self.rows)

    @property
    def tokens(self) -> Any:
        """Ids in the order in which the family sees them, start token and prompt included, int64."""
        return self._one([row.tokens for row in self.rows])

    @cached_property
    def text(self) -> Any:
        """Prompt and what follows, or the text with its gaps filled; ``░`` for every token that is not known yet."""
        return self._one(["".join(p.text for p in self.pieces(i)) for i in range(len(self.rows))])

    @property
    def fresh(self) -> str:
        """What the last step of a row that is not done committed, in words: how many tokens, and how sure the network was."""
        now = [row.confidence[row.committed_at == self.step] for row in self.rows]
        sure = np.concatenate(now)
        if not len(sure):
            return "nothing new"
        return f"{len(sure)} new, probability {sure.mean():.0%} on average" + (f", {sure.min():.0%} at least" if len(sure) > 1 else "")

    @property
    def cost(self) -> str:
        """What the rows took so far, in words; empty where the sampler does not count it."""
        evaluations, computed, reused = (sum(getattr(row, name) for row in self.rows) for name in ("evaluations", "computed", "reused"))
        if not evaluations:
            return ""
        uncovered = sum(int((row.committed_at > 0).sum()) for row in self.rows)
        words = f"{evaluations} evaluations, {uncovered / evaluations:.2f} tokens each"
        if any(row.drafts for row in self.rows):
            words += f", of their drafts {', '.join(f'{share:.0%}' for share in acceptance(self.rows))} accepted"
        return words + (f", {reused / (computed + reused):.0%} of what they saw from the cache" if reused else "")

    @cached_property
    def completion(self) -> Any:
        """What was uncovered, without what was given."""
        return self._one(["".join(p.text for p in self.pieces(i) if p.committed_at) for i in range(len(self.rows))])

    def pieces(self, index: int) -> list[Piece]:
        """Row ``index`` in reading order. A continuation ends at its first end token, or where a stop string begins.

        A character whose bytes are spread over several tokens stands in the last of them.
        """
        shown = self.timeline("", index)
        pieces = [Piece(*each) for each in zip(shown.pieces, shown.committed_at, shown.confidence, strict=True)]
        cut = self.rows[index].final and self.stop is not None and not self.canvases[index].infill
        return self._cut(pieces) if cut else pieces

    def timeline(self, title: str, index: int = 0, steps: Sequence[Sequence[int]] = ()) -> TokenTimeline:
        """Row ``index`` as a view of a page, up to its end token; ``steps`` as there."""
        row, canvas, v = self.rows[index], self.canvases[index], self.tokenizer.vocabulary
        places = canvas.reading(len(row.tokens))
        if not canvas.infill:
            ends = np.flatnonzero(row.tokens[canvas.given :] == v.end)
            places = places[: canvas.given + int(ends[0])] if len(ends) else places
        return timeline(title, row, self.tokenizer, places, replace(self, rows=[row]).cost, steps)

    def _cut(self, pieces: list[Piece]) -> list[Piece]:
        assert self.stop is not None
        room = len(self.stop.cut("".join(p.text for p in pieces if p.committed_at)))
        kept = []
        for piece in pieces:
            if piece.committed_at:
                piece, room = piece._replace(text=piece.text[: max(room, 0)]), room - len(piece.text)
            kept.append(piece)
        return kept

    def _one(self, items: list[Any]) -> Any:
        return items[0] if self.single else items


def played(title: str, snapshots: Iterable[TextSnapshot]) -> tuple[TokenTimeline, TextSnapshot]:
    """The first row as a view of a page, with what every step took, and the last snapshot.

    Raises ValueError for no snapshots.
    """
    steps, snapshot, done = [], None, False
    for snapshot in snapshots:
        row = snapshot.rows[0]
        if not done:
            steps.append([int((row.committed_at > 0).sum()), row.evaluations, row.computed, row.reused])
        done = row.final
    if snapshot is None:
        raise ValueError("nothing was uncovered")
    return snapshot.timeline(title, 0, steps), snapshot
