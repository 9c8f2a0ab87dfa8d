import importlib.util
import pickle
import subprocess
import sys
import types
import warnings

import cv2
import mmcv
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer

from aligndet_train.ops import MissingOpError, install
from aligndet_train.ops import standin as standin_module
from proposals.errors import MissingExtraError


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_installing_twice_changes_nothing():
    module = sys.modules["mmcv._ext"]
    assert install() == "torchvision"
    assert sys.modules["mmcv._ext"] is module is mmcv._ext
    assert importlib.util.find_spec("mmcv._ext") is not None


def test_a_missing_op_imports_and_names_itself_when_called():
    from mmcv.ops import carafe

    with pytest.raises(MissingOpError, match=r"'carafe_forward'.*mmcv 2\.1 compiled"):
        carafe(torch.rand(1, 4, 4, 4), torch.rand(1, 25, 8, 8), 5, 1, 2)
    assert not hasattr(mmcv._ext, "__path__")


def test_a_compiled_mmcv_is_left_alone(monkeypatch):
    compiled = types.ModuleType("mmcv._ext")
    compiled.__spec__ = importlib.util.spec_from_loader("mmcv._ext", loader=None)
    monkeypatch.setitem(sys.modules, "mmcv._ext", compiled)
    assert install() == "compiled"
    assert sys.modules["mmcv._ext"] is compiled


def test_without_mmcv_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"aligndet\[train\]"):
        install()


def test_a_broken_compiled_mmcv_gives_way(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv" / "__init__.py").write_text("")
    (tmp_path / "mmcv" / "_ext.py").write_text("raise ImportError('undefined symbol')")
    code = "import aligndet_train.ops as ops; print(ops.install())"
    assert run_python(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}").strip() == "torchvision"


def test_a_cv2_without_ximgproc_warns_with_the_repair_command(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.warns(UserWarning, match="pip install --force-reinstall"):
        install()


def test_a_whole_cv2_is_silent(monkeypatch):
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        install()


def test_torch_loads_what_an_mmengine_runner_saves(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    torch.save({"message_hub": {"loss": history}, "state_dict": {"w": torch.ones(2)}}, tmp_path / "last.pth")
    loaded = torch.load(tmp_path / "last.pth", weights_only=True)
    assert loaded["message_hub"]["loss"].data[0].tolist() == [1.0, 2.0]


def test_torch_still_refuses_getattr_on_anything_else(tmp_path):
    class Sneaky:
        def __reduce__(self):
            return getattr, (dict, "fromkeys")

    torch.save(Sneaky(), tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError, match=r"not part of an mmengine checkpoint|Unsupported"):
        torch.load(tmp_path / "bad.pth", weights_only=True)


def test_every_name_mmcv_wants_is_answered_and_ours_take_its_arguments():
    assert set(standin_module.OPS) <= set(dir(mmcv._ext))
    assert mmcv.ops.get_compiler_version().startswith("none")
    assert isinstance(mmcv.ops.get_compiling_cuda_version(), str)
