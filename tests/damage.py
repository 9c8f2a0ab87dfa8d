"""What a disk, a cable or a forger does to a file."""

import json
from pathlib import Path
from typing import Any

from proposals.dataset.seal import seal


def flip_a_bit(path: Path) -> None:
    """Change one bit in the middle of ``path``."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """``content`` with a digest that fits, as somebody writes it who wants to be believed."""
    told = {name: value for name, value in content.items() if name != "digest"}
    path.write_bytes(seal(json.dumps(told, indent=1).encode() + b"\n"))
