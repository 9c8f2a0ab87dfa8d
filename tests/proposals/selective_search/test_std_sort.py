"""The replay of libstdc++'s std::sort, against permutations recorded from g++ 12 and against a live one if any."""

import ctypes
import hashlib
import shutil
import subprocess

import numpy as np
import pytest

from proposals.selective_search.jit import kernel
from proposals.selective_search.std_sort import std_sort

SOURCE = r"""
#include <algorithm>
#include <vector>
struct Pair { float key; int load; bool operator<(const Pair& other) const { return key < other.key; } };
extern "C" void sort_pairs(float* keys, int* loads, long count) {
    std::vector<Pair> pairs(count);
    for (long i = 0; i < count; ++i) pairs[i] = {keys[i], loads[i]};
    std::sort(pairs.begin(), pairs.end());
    for (long i = 0; i < count; ++i) { keys[i] = pairs[i].key; loads[i] = pairs[i].load; }
}
"""


@kernel("void(float32[::1], int32[::1], int64, int64[::1])")
def _sort(keys, loads, count, stack):
    std_sort(keys, loads, count, stack)


def replay(keys):
    keys, loads = keys.copy(), np.arange(len(keys), dtype=np.int32)
    _sort(keys, loads, len(keys), np.empty(256, np.int64))
    return keys, loads


def median_of_three_killer(count):
    """Quicksort on the median of three goes quadratic here, so introsort turns to its heap."""
    keys = np.zeros(count, np.float32)
    half = count // 2
    for i in range(half):
        keys[i] = i + 1 if i % 2 == 0 else half + i + (half & 1)
        keys[half + i] = (i + 1) * 2
    return keys


def cases():
    random = np.random.default_rng(0)
    yield "few keys", random.integers(0, 3, 500)
    yield "pairs of keys", random.integers(0, 250, 500)
    yield "no tie", random.permutation(500)
    yield "sorted with ties", np.sort(random.integers(0, 60, 500))
    yield "falling with ties", np.sort(random.integers(0, 60, 500))[::-1]
    yield "all equal", np.zeros(300)
    yield "sixteen", random.integers(0, 4, 16)
    yield "seventeen", random.integers(0, 4, 17)
    yield "one", np.zeros(1)
    yield "none", np.zeros(0)
    yield "heap", median_of_three_killer(20000)
    yield "heap with ties", np.floor(median_of_three_killer(20000) / 4)


CASES = {name: np.ascontiguousarray(keys, np.float32) for name, keys in cases()}
RECORDED = {
    "few keys": "77bde6adbfc6724f",
    "pairs of keys": "e3c4b55e48a367e2",
    "no tie": "ed5973cbe98115cc",
    "sorted with ties": "dc424271b6dc1b14",
    "falling with ties": "cf1cbff3e8c4ffe7",
    "all equal": "f91e7a53dbde2603",
    "sixteen": "bc230b0272fa173e",
    "seventeen": "394a4f81e3dc7dd1",
    "one": "df3f619804a92fdb",
    "none": "e3b0c44298fc1c14",
    "heap": "c9f6e8fa93fa2d6a",
    "heap with ties": "d9de4a351b29a8c1",
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_permutations(name):
    keys, loads = replay(CASES[name])
    np.testing.assert_array_equal(keys, np.sort(CASES[name]))
    assert hashlib.sha256(loads.tobytes()).hexdigest()[:16] == RECORDED[name]


@pytest.fixture(scope="module")
def compiled_sort(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: the recorded permutations stand")
    folder = tmp_path_factory.mktemp("std_sort")
    (folder / "sort.cpp").write_text(SOURCE)
    command = ["g++", "-O2", "-shared", "-fPIC", "-o", str(folder / "sort.so"), str(folder / "sort.cpp")]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "sort.so")).sort_pairs


def test_against_the_compiler_here(compiled_sort):
    random = np.random.default_rng(1)
    tied = [random.integers(0, 1 + count // 3, count) for count in random.integers(0, 400, 200)]
    for keys in [*CASES.values(), *(np.asarray(case, np.float32) for case in tied)]:
        expected, loads = keys.copy(), np.arange(len(keys), dtype=np.int32)
        compiled_sort(
            expected.ctypes.data_as(ctypes.c_void_p),
            loads.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_long(len(keys)),
        )
        np.testing.assert_array_equal(replay(keys)[1], loads)
