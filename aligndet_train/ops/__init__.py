"""mmcv's compiled ops on torchvision, so that stock mmdet runs on a current torch with nothing to compile.

Importing aligndet_train is enough for ``import mmcv.ops``; :func:`install` says beforehand what is missing.
"""

import importlib
import importlib.util
import logging
import sys
import warnings
from types import ModuleType
from typing import Literal

from aligndet_train.ops.checkpoints import trust_mmengine_checkpoints
from aligndet_train.ops.standin import NAME, MissingOpError, StandIn
from proposals.errors import MissingExtraError

__all__ = ["MissingOpError", "install"]

Backend = Literal["compiled", "torchvision"]
_log = logging.getLogger(__name__)


def install() -> Backend:
    """Make ``mmcv.ops`` importable; idempotent. Says whose ops are used now.

    A compiled mmcv that loads is left alone ("compiled"); otherwise a module on torchvision takes the place
    of ``mmcv._ext`` ("torchvision"). Also lets ``torch.load`` read mmengine's own checkpoints, and warns when
    the installed cv2 lacks what the OpenCV mining engine needs.

    Raises MissingExtraError without mmcv.
    """
    if isinstance(sys.modules.get(NAME), StandIn):
        return "torchvision"
    if importlib.util.find_spec("mmcv") is None:
        raise MissingExtraError("mmcv is not installed. Run: pip install 'aligndet[train]'")
    _warn_of_broken_opencv()
    trust_mmengine_checkpoints()
    module = _import_ext()
    sys.modules[NAME] = module
    vars(importlib.import_module("mmcv"))["_ext"] = module
    return "torchvision" if isinstance(module, StandIn) else "compiled"


def _import_ext() -> ModuleType:
    """mmcv's own binary when there is one and it loads with this torch, else the stand-in."""
    try:
        return importlib.import_module(NAME)
    except ImportError as error:
        _log.warning("the compiled mmcv does not load, torchvision's ops take its place: %s", error)
        return StandIn()


def _warn_of_broken_opencv() -> None:
    from proposals.opencv import REPAIR, has_ximgproc

    if not has_ximgproc():
        warnings.warn(
            "this cv2 has no ximgproc (another opencv package overwrote opencv-contrib-python): "
            f"training works, mining with the opencv engine will not. Run: {REPAIR}",
            stacklevel=3,
        )
