"""StopStrings: ends a text at the first stop string, wherever the borders of its pieces lie."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on, and holds back just what may still become a stop string.

    The stop string whose last character comes first wins; of several that end there, the longest. Time is
    proportional to the text and the number of stop strings, not to their lengths (Knuth, Morris, Pratt 1977).

    Args:
        stops: strings to stop at, none of them empty.
        include: whether the stop string itself is part of the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._include = include
        self._held = ""
        self.stop: str | None = None
        """The stop string that was found."""

    def push(self, text: str) -> str:
        """The text that is certain after `text` was added; nothing more once a stop string was found."""
        if self.stop is not None:
            return ""
        if not self._stops:
            return text
        for end, character in enumerate(text, start=1):
            found = self._advance(character)
            if found is not None:
                self.stop = found
                certain = self._held + text[:end]
                self._held = ""
                return certain if self._include else certain[: -len(found)]
        certain = self._held + text
        cut = len(certain) - max(self._matched)
        self._held = certain[cut:]
        return certain[:cut]

    def flush(self) -> str:
        """What was held back, now that the text is complete."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        for index, stop in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != character:
                matched = self._borders[index][matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                return stop
            self._matched[index] = matched
        return None


def _borders(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is its suffix as well."""
    borders = [0]
    length = 0
    for character in stop[1:]:
        while length and stop[length] != character:
            length = borders[length - 1]
        length += stop[length] == character
        borders.append(length)
    return borders
