"""How many images a step a stock config's learning rate is meant for.

mmdet says it twice: in names of files (``8xb32``: 8 GPUs of 32 images) and in ``auto_scale_lr.base_batch_size``. Where
they differ the setting is a default that nobody changed: RTMDet's says 16, its rate is for 256.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

_USUAL = 16  # 8 GPUs of 2
_NAMED = re.compile(r"(?<!\d)(\d+)xb(\d+)(?!\d)")
_HIDDEN = (
    " (auto_scale_lr's, 16 without: this config does not name the files it was made of, and RTMDet's say 256, not 16. "
    "If its rate is for another batch, give --lr)"
)
_IMPORTS_BASES = re.compile(r"^\s*with read_base\(\)", re.MULTILINE)
_SETS_RATE = re.compile(r"^(auto_scale_lr|optim_wrapper)\s*=", re.MULTILINE)
_PATH = re.compile(r"^(/.*\.py)$", re.MULTILINE)


def base_batch(config: Config) -> tuple[int, str]:
    """(images, a remark for the log): the remark is empty where both agree, or only the setting can say it.

    Of a config and the files below it (``_base_``) the nearest counts that has a batch in its name, or sets the rate.
    """
    said = int((config.get("auto_scale_lr") or {}).get("base_batch_size", _USUAL))
    for path, text in _files(config):
        if found := _NAMED.search(path.stem):
            images = int(found[1]) * int(found[2])
            remark = f" ({found[0]} in {path.name}; auto_scale_lr says {said})"
            return images, remark if images != said else ""
        if _SETS_RATE.search(text):
            break
    return said, _HIDDEN if _hides_its_bases(config) else ""


def _hides_its_bases(config: Config) -> bool:
    """Whether names of base files cannot be known: a dumped config has lost them, one in pure Python imports them."""
    return Path(config.filename or "").suffix != ".py" or _IMPORTS_BASES.search(config.text) is not None


def _files(config: Config) -> Iterator[tuple[Path, str]]:
    """The files of a config with their text, its own first. mmengine joins them, each below a line that is its path."""
    parts = _PATH.split(config.text)
    joined = list(zip(parts[1::2], parts[2::2], strict=True))
    for path, text in reversed(joined or [(config.filename or "", config.text)]):
        yield Path(path), text
