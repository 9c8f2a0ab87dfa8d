"""Image files made to harm: shown as a viewer would, or refused with a stable reason, in little memory and time."""

import pytest

from tests.attacks.images import REFUSED, SHOWN


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_viewer_would_show_comes_out(name, confined, tmp_path):
    make, shape = SHOWN[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(make())
    outcome = confined.read("image", path)
    assert (outcome.kind, outcome.text) == ("value", str(shape))


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_viewer_should_show_is_refused(name, confined, tmp_path):
    make, reason = REFUSED[name]
    path = tmp_path / "a.png"  # whatever it is: the suffix decides nothing
    path.write_bytes(make())
    outcome = confined.read("image", path, megabytes=128 + 4 * path.stat().st_size // 2**20)
    assert outcome.kind == "refused"
    assert outcome.text.startswith(reason)


def test_a_file_larger_than_memory_is_not_read(confined, tmp_path):
    path = tmp_path / "sparse.jpg"
    with path.open("wb") as stream:
        stream.truncate(20 * 2**30)  # takes no disk
    outcome = confined.read("fetched", path)
    assert (outcome.kind, outcome.text.split(" (")[0]) == ("refused", "read: too_large")
