"""Box-domain pretraining of mmdet detectors on mined proposals (floor 2: no Ray)."""

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _MmcvExtFinder(MetaPathFinder, Loader):
    """Answers ``import mmcv._ext`` where no compiled mmcv does: last in line, so a real one wins.

    So any module here may import mmdet without a set-up call, and `aligndet --help` still imports no torch.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == "mmcv._ext" else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        from aligndet_train.ops.checkpoints import trust_mmengine_checkpoints
        from aligndet_train.ops.standin import StandIn

        trust_mmengine_checkpoints()
        return StandIn()

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the stand-in is complete when made."""


sys.meta_path.append(_MmcvExtFinder())

# mmengine's and mmdet's, nothing a user of ours can act on.
warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
warnings.filterwarnings("ignore", message="torch.meshgrid: in an upcoming release")
