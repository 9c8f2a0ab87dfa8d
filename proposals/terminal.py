"""Text of strangers, as names of files and messages about them, on its way to a terminal."""


def harmless(text: str) -> str:
    """``text`` with all that would move a terminal's cursor or change its colours spelt out; line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
