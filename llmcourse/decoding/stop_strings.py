"""Stop strings: end a text before a given string, though tokens may cut that string anywhere."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Passes a text through piece by piece, holding back what may be the start of a stop string.

    What comes out does not depend on how the text was cut into pieces: the stop string that is
    complete first ends the text, and of several that are complete together the longest.

    Args:
        stop: the strings; none means that every piece passes at once.

    Attributes:
        found: the stop string that ended the text, None while there is none.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, stop: Sequence[str]):
        if "" in stop:
            raise ValueError("stop must hold non-empty strings, got ''; leave it out to stop at nothing")
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> str:
        """What may be shown now that this piece came."""
        if self.found is not None:
            return ""
        text = self._held + piece
        hits = [(text.find(s) + len(s), text.find(s), s) for s in self._stop if s in text]
        if hits:
            _, cut, self.found = min(hits)
            self._held = ""
            return text[:cut]
        cut = len(text) - self._longest_start(text)
        self._held = text[cut:]
        return text[:cut]

    def flush(self) -> str:
        """What is still held back, once the text has ended by itself."""
        held, self._held = self._held, ""
        return held

    def _longest_start(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop string."""
        longest = max((len(s) for s in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0
