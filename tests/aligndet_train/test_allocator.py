"""Memory that tensors leave: kept for the next ones, where glibc can."""

import os
import platform
import subprocess
import sys

import pytest

from aligndet_train import allocator

# 64 MB each: 16,384 pages, or 32 huge ones. The first few find the heap as the imports left it.
_FAULTS_OF_FOUR_TENSORS = """
import resource, torch
from aligndet_train.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
for number in range(8):
    if number == 4:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory"
)
def test_tensors_take_the_memory_of_those_before_them():
    assert _faults(keep=False) >= 4 * 32
    assert _faults(keep=True) < 32


def test_with_a_gpu_malloc_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "get_device", lambda: "cuda")
    assert not allocator.keep_freed_memory()


def _faults(*, keep: bool) -> int:
    # Without what this shell may tell malloc already.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD" and not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    result = subprocess.run(
        [sys.executable, "-c", _FAULTS_OF_FOUR_TENSORS.format(keep=keep)],
        check=True,
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    return int(result.stdout)
