"""Finding the images of a shard that no worker survives, by halving. Pure: somebody else runs the probes."""

from dataclasses import dataclass, field

Span = tuple[int, int]

# A probe is believed only when it failed so often, since workers die for other reasons too.
_STRIKES = 2
_STRIKES_ALONE = 3


@dataclass
class Hunt:
    """Of a shard of ``size`` images that is known to fail. guilty: places of the images that fail alone, ascending."""

    size: int
    guilty: list[int] = field(default_factory=list)
    _strikes: dict[Span, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._strikes = dict.fromkeys(_halves((0, self.size)), 0)

    @property
    def is_over(self) -> bool:
        """Whether every span has passed or is down to one guilty image."""
        return not self._strikes

    def spans(self) -> list[Span]:
        """The spans (first, last + 1) that must be probed now."""
        return list(self._strikes)

    def passed(self, span: Span) -> list[Span]:
        """``span`` was survived; returns the spans to probe next."""
        del self._strikes[span]
        return []

    def failed(self, span: Span) -> list[Span]:
        """``span`` was not survived; returns the spans to probe next, perhaps the same again."""
        self._strikes[span] += 1
        alone = span[1] - span[0] == 1
        if self._strikes[span] < (_STRIKES_ALONE if alone else _STRIKES):
            return [span]
        del self._strikes[span]
        if alone:
            self.guilty = sorted([*self.guilty, span[0]])
            return []
        self._strikes |= dict.fromkeys(_halves(span), 0)
        return _halves(span)


def _halves(span: Span) -> list[Span]:
    first, last = span
    middle = (first + last) // 2
    return [half for half in ((first, middle), (middle, last)) if half[0] < half[1]]
