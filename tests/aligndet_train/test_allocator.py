"""Memory that tensors leave: kept for the next ones, where glibc can."""

import os
import platform
import subprocess
import sys

import pytest

from aligndet_train import allocator

# 64 MB.
_GROWTH_OF_A_TENSOR_THAT_IS_GONE = """
import resource, torch
from aligndet_train.allocator import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

if {keep}:
    assert keep_freed_memory()
before = resident()
torch.ones(1 << 24)
print(resident() - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told to keep memory"
)
def test_the_memory_of_a_tensor_stays_with_the_process():
    assert _growth(keep=False) < 1 << 24
    assert _growth(keep=True) >= 1 << 26


def test_with_a_gpu_malloc_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator, "get_device", lambda: "cuda")
    assert not allocator.keep_freed_memory()


def _growth(*, keep: bool) -> int:
    # Without what this shell may tell malloc already.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "LD_PRELOAD" and not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    result = subprocess.run(
        [sys.executable, "-c", _GROWTH_OF_A_TENSOR_THAT_IS_GONE.format(keep=keep)],
        check=True,
        capture_output=True,
        text=True,
        env=environment | {"CUDA_VISIBLE_DEVICES": ""},
    )
    return int(result.stdout)
