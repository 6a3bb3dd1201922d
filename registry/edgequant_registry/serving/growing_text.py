"""The text of an answer while its tokens come: in whole characters, and no further than a text of `stop`."""

from __future__ import annotations

from collections.abc import Sequence

from edgequant_registry.serving.chat_text import ChatText

UNFINISHED = "\ufffd"  # what a decoder makes of bytes that are no character, or none yet


class GrowingText:
    """Tokens in, text out; each token is decoded once, or until the character that it is a part of is whole.

    Args:
        prompt: token ids in front of the answer.
        stop: texts before which it ends.

    Attributes:
        tokens: of the answer.
        stopped: whether a text of `stop` was found.
    """

    def __init__(self, text: ChatText, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._decoder, self._before, self._stop = text, list(prompt[-1:]), stop
        self._text, self._pending, self._sent = "", [], 0  # type: ignore[var-annotated]
        self.tokens: list[int] = []
        self.stopped = False

    def add(self, token: int) -> None:
        self.tokens.append(token)
        self._pending.append(token)
        piece = self._decoder.decode(self._pending, after=self._before)
        if not piece.endswith(UNFINISHED):
            self._take(piece)

    def finish(self) -> str:
        """The whole text, when no token follows."""
        if self._pending and not self.stopped:
            self._take(self._decoder.decode(self._pending, after=self._before))
        return self._text

    def unsent(self) -> str:
        """What has come since the last call and cannot become a part of a text of `stop`."""
        end = len(self._text) if self.stopped else len(self._text) - self._beginning_of_stop()
        piece, self._sent = self._text[self._sent : end], max(self._sent, end)
        return piece

    def rest(self) -> str:
        """What was not sent, after `finish`."""
        return self._text[self._sent :]

    def _take(self, piece: str) -> None:
        begin = max(0, len(self._text) - max(map(len, self._stop), default=0) + 1)
        self._text += piece
        self._before, self._pending = self._pending[-1:] or self._before, []
        found = [at for stop in self._stop if (at := self._text.find(stop, begin)) >= 0]
        if found:
            self._text, self.stopped = self._text[: min(found)], True

    def _beginning_of_stop(self) -> int:
        """How many characters at the end are the beginning of a text of `stop`."""
        longest = max(map(len, self._stop), default=0)
        return next(
            (
                length
                for length in range(min(longest - 1, len(self._text)), 0, -1)
                if any(stop.startswith(self._text[-length:]) for stop in self._stop)
            ),
            0,
        )
