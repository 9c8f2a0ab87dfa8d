"""The trainer's part of `aligndet doctor`: torch and what stands on it, the GPU, mmcv's ops."""

from pathlib import Path

from proposals.extras import install_hint, missing_packages
from proposals.health import Check, one_line, package, requirements, shared_memory

_PACKAGES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "mmengine": "mmengine",
    "mmcv": "mmcv-lite",
    "mmdet": "mmdet",
    "timm": "timm",
    "safetensors": "safetensors",
}
_DRIVER = Path("/proc/driver/nvidia/version")


def checks() -> list[Check]:
    """See proposals.health."""
    absent = missing_packages("train")
    if absent:
        without = f"{', '.join(absent)} not installed: detectors cannot be trained"
        return [Check("trainer", "missing", without, install_hint("train"))]
    packages = [package(name, distribution) for name, distribution in _PACKAGES.items()]
    torch_works, torchvision_works = (check.status == "ok" for check in packages[:2])
    found: list[Check] = [*packages, *requirements("train")]
    if torch_works:
        found += [_device(), *shared_memory(2**30, "a DataLoader with workers")]
    if torch_works and torchvision_works:
        found.append(_operators())
    return found


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        devices = [_gpu(number) for number in range(torch.cuda.device_count())]
        return Check("gpu", "ok", f"{'; '.join(devices)}; CUDA {torch.version.cuda}")
    if not _DRIVER.exists():
        return Check("gpu", "missing", "none: training runs on the CPU, which is slow")
    if torch.version.cuda is None:
        found = "there is an NVIDIA driver, but this torch is a build for CPUs"
        return Check("gpu", "warning", found, "pip install --force-reinstall torch torchvision")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        why = "it sees no device"
    except (RuntimeError, AssertionError) as error:
        why = one_line(error)
    found = f"there is an NVIDIA driver, but torch {torch.__version__} cannot use it: {why}"
    return Check(
        "gpu", "warning", found, "update the driver, or install the torch built for its CUDA version"
    )


def _gpu(number: int) -> str:
    import torch

    properties = torch.cuda.get_device_properties(number)
    bfloat16 = "with" if torch.cuda.is_bf16_supported() else "without"
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {bfloat16} bfloat16"


def _operators() -> Check:
    """Whether torchvision's compiled operators belong to this torch, and whose mmcv's are."""
    import torch
    import torchvision

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except (RuntimeError, AttributeError) as error:
        repair = "pip install --force-reinstall torch torchvision"
        return Check("operators", "broken", f"torchvision's do not fit torch: {one_line(error)}", repair)
    from aligndet_train import ops

    try:
        backend = ops.install()
    except (ImportError, AttributeError) as error:
        repair = "pip install --force-reinstall --no-deps mmcv-lite"
        return Check("operators", "broken", f"mmcv's: {one_line(error)}", repair)
    ours = "mmcv's are ours, on torchvision"
    return Check("operators", "ok", ours if backend == "torchvision" else "mmcv's own, compiled")
