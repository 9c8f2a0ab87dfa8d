"""What a disk or a cable does to a file."""

from pathlib import Path


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of ``path``."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
