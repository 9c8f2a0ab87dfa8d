"""``torch.save`` files of strangers: no code of theirs runs, and nothing in them takes more memory than the file."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_ZIP = b"PK\x03\x04"
_MOST_REPEATED = 2**30


def load_plain(path: Path, harmless: Sequence[Any] = ()) -> Any:
    """The tensors, on the CPU, and plain data in ``path``. harmless: further types to read, see torch's safe_globals.

    Raises ValueError for a file that unpacks to more than it holds, and whatever torch and zipfile raise for one that
    is damaged or asks for code.
    """
    _require_stored(path)
    with torch.serialization.safe_globals(list(harmless)):
        content = torch.load(path, map_location="cpu", weights_only=True)
    _require_own_data(tensors_in(content))
    return content


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in dictionaries, lists and tuples, however deep; each container once."""
    waiting, seen = [content], set[int]()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value


def _require_stored(path: Path) -> None:
    with path.open("rb") as stream:
        if stream.read(4) != _ZIP:
            return
    with zipfile.ZipFile(path) as archive:
        declared = sum(entry.file_size for entry in archive.infolist())
    if declared > path.stat().st_size:
        raise ValueError(
            f"its entries unpack to {declared} bytes, more than the file has: torch compresses nothing"
        )


def _require_own_data(tensors: Iterable[Tensor]) -> None:
    """Refuse tensors that repeat a little data (stride 0) for more than a gigabyte: each copy would be that large."""
    repeated = 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("a tensor that is no plain one")
        size = tensor.numel() * tensor.element_size()
        repeated += size if size > tensor.untyped_storage().nbytes() else 0
        if repeated > _MOST_REPEATED:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is larger than the data it has")
