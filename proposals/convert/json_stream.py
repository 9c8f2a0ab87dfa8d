"""Reading a JSON object far larger than memory, a few array elements at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from proposals.errors import AlignDetError

_CHUNK = 1 << 20
_LARGEST_VALUE = 1 << 23  # in memory a value can take twenty times its text
_ELEMENTS = 1024
_LONGEST_TOKEN = 16  # that means nothing without its end: -Infinity, two escapes of a character
_SPACE = " \t\r\n"


def members(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The members of the JSON object in ``path``, in file order: (name, some elements of the array).

    An array comes in parts of at most 1024 elements, at least one part even when it is empty; any other value is
    one element. Raises AlignDetError when the file is not such JSON, is cut, or has one element too large: 8 million
    characters always pass, 16 million never.
    """
    try:
        with path.open(encoding="utf-8-sig") as stream:
            yield from _Scanner(path, stream).members()
    except (OSError, UnicodeDecodeError) as error:
        raise AlignDetError(f"{path} cannot be read: {error}. Name a JSON file.") from error


class _Scanner:
    def __init__(self, path: Path, stream: TextIO) -> None:
        self._path, self._stream = path, stream
        self._text, self._place, self._ended = "", 0, False
        self._before, self._lines_before = 0, 0  # characters and line ends that are no longer in the text
        self._decoder = json.JSONDecoder()

    def members(self) -> Iterator[tuple[str, list[Any]]]:
        """(name, values) of the object's members; a list comes in parts, any other value as a list of one."""
        self._expect("{")
        if self._next() == "}":
            return
        while True:
            name = self._value()
            self._expect(":")
            if self._next() == "[":
                yield from ((str(name), part) for part in self._array())
            else:
                yield str(name), [self._value()]
            if self._expect(",}") == "}":
                return

    def _array(self) -> Iterator[list[Any]]:
        self._expect("[")
        part: list[Any] = []
        closed = self._next() == "]" and bool(self._expect("]"))
        while not closed:
            part.append(self._value())
            closed = self._expect(",]") == "]"
            if len(part) == _ELEMENTS and not closed:
                yield part
                part = []
        yield part

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as error:
                if self._ended or self._is_certain(error):
                    raise self._broken(self._placed(error)) from error
            except (ValueError, RecursionError) as error:  # a number of more digits than Python reads
                raise self._broken(str(error)) from error
            else:
                # A number may go on in the next part: "1" of "12", and "1" of "1.5" cut behind its dot.
                if self._ended or (end < len(self._text) and self._text[end] not in "+-.eE0123456789"):
                    self._place = end
                    return value
            self._more()

    def _is_certain(self, error: json.JSONDecodeError) -> bool:
        """Whether no more text can mend it: what is cut short is at the end, or a string that begins anywhere."""
        behind = len(self._text.rstrip(_SPACE)) - error.pos
        return behind > _LONGEST_TOKEN and not error.msg.startswith("Unterminated string")

    def _placed(self, error: json.JSONDecodeError) -> str:
        line = self._lines_before + self._text.count("\n", 0, error.pos) + 1
        return f"{error.msg} (line {line}, character {self._before + error.pos + 1} of the file)"

    def _next(self) -> str:
        while True:
            while self._place < len(self._text):
                if self._text[self._place] not in _SPACE:
                    return self._text[self._place]
                self._place += 1
            if self._ended:
                raise self._broken("it ends too early")
            self._more()

    def _expect(self, allowed: str) -> str:
        found = self._next()
        if found not in allowed:
            raise self._broken(f"{found!r} where {' or '.join(allowed)} should be")
        self._place += 1
        return found

    def _more(self) -> None:
        kept = self._text[self._place :]
        if len(kept) >= _LARGEST_VALUE:
            raise self._broken(f"one value has more than {_LARGEST_VALUE} characters")
        # At least doubling keeps the retries of a long value linear in its length.
        read = self._stream.read(max(_CHUNK, len(kept)))
        self._ended = not read
        self._before += self._place
        self._lines_before += self._text.count("\n", 0, self._place)
        self._text, self._place = kept + read, 0

    def _broken(self, why: str) -> AlignDetError:
        return AlignDetError(
            f"{self._path} is not a JSON object of arrays: {why}. Is it cut or of another kind?"
        )
