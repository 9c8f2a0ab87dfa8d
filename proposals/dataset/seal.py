"""The seal of a JSON file: its last line is the sha256 of all bytes before that line."""

import hashlib
import re
from typing import Literal

SealState = Literal["intact", "broken", "absent"]

_END = b"\n}\n"
_SEAL = re.compile(rb' "digest": "([0-9a-f]{64})"\n\}\n\Z')


def seal(text: bytes) -> bytes:
    """``text``, a JSON object written with indent 1 and a final newline, with ``digest`` added as its last field."""
    body = text.removesuffix(_END) + b",\n"
    return body + b' "digest": "' + hashlib.sha256(body).hexdigest().encode() + b'"' + _END


def seal_state(data: bytes) -> SealState:
    """Whether ``data`` is as it was sealed. ``absent``: it names no digest, so nothing can be said."""
    found = _SEAL.search(data, max(0, len(data) - 128))
    if found is None:
        return "broken" if b'"digest"' in data else "absent"
    body = memoryview(data)[: found.start()]
    return "intact" if hashlib.sha256(body).hexdigest().encode() == found[1] else "broken"
