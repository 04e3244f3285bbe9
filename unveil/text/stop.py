"""Stop strings over text that arrives token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from unveil.errors import UserError


class StopStrings:
    """Ends a text where one of some strings appears.

    A token boundary may fall anywhere, even inside a character, so the search runs on bytes: UTF-8 synchronises itself, hence the bytes of
    a string are found in the bytes of a text exactly where the string is in the text.

    Args:
        strings: what ends a text.
        decode_bytes: ids to the bytes they stand for.

    Raises:
        UserError: an empty stop string, which would end every text before it begins.
    """

    def __init__(self, strings: Sequence[str], decode_bytes: Callable[[Sequence[int]], bytes]) -> None:
        if "" in strings:
            raise UserError("sampler.stop", "got an empty string", "name the text to stop at, or leave stop out")
        self.strings = tuple(strings)
        self._patterns = [s.encode() for s in strings]
        self._longest = max(map(len, self._patterns), default=0)
        self._decode = decode_bytes

    def __call__(self, new_tokens: Sequence[int]) -> bool:
        """Whether a stop string ends within the last of ``new_tokens`` (without the prompt). Asked after each token, it misses none."""
        if not self.strings or not len(new_tokens):
            return False
        # What ended earlier was reported earlier, so a window suffices; a byte more than needed, as some tokenizers drop a leading space.
        needed = self._longest + len(self._decode(new_tokens[-1:]))
        count = self._longest + 1
        data = self._decode(new_tokens[-count:])
        while len(data) < needed and count < len(new_tokens):  # tokens without bytes
            count *= 2
            data = self._decode(new_tokens[-count:])
        return any(pattern in data for pattern in self._patterns)

    def cut(self, text: str) -> str:
        """``text`` up to where the first stop string in it begins; all of it where there is none."""
        return text[: min((at for at in map(text.find, self.strings) if at >= 0), default=len(text))]

    def visible(self, text: str) -> str:
        """What of an unfinished ``text`` is there to stay: ``cut``, less an end that may yet become a stop string or a whole character."""
        cut = self.cut(text).rstrip("\ufffd")
        held = (n for s in self.strings for n in range(1, len(s)) if cut.endswith(s[:n]))
        return cut[: len(cut) - max(held, default=0)]
