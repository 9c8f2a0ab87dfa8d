"""Checkpoint files: atomic, previous kept, refused when they are not ours."""

import errno
import os
import pickle
import resource
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from torch import nn

from aligndet_train.checkpoint import (
    INITIAL_WEIGHTS,
    LAST,
    PREVIOUS,
    identity_difference,
    load_checkpoint,
    save_checkpoint,
    saved_run,
)
from aligndet_train.export import write_weights
from proposals.errors import AlignDetError
from tests.aligndet_train.forked import context
from tests.aligndet_train.power_cuts import files_named_before_flushed


@pytest.fixture
def model_and_optimizer():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_round_trip_and_previous(tmp_path, model_and_optimizer):
    model, optimizer = model_and_optimizer
    # Some mmdet classes take only a tuple, others only a list.
    identity = {"seed": 7, "views": {"sides": (640, (1, 2)), "scales": [[1], (2,)]}}
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, model, optimizer, step, identity, (7, 0, 4 * step))
    assert sorted(p.name for p in tmp_path.iterdir()) == [LAST, PREVIOUS]
    last, previous = load_checkpoint(tmp_path / LAST), load_checkpoint(tmp_path / PREVIOUS)
    assert (last["step"], previous["step"]) == (3, 2)
    assert (last["stream"], previous["stream"]) == ([7, 0, 12], [7, 0, 8])
    assert last["identity"] == identity
    assert torch.equal(last["model"]["weight"], model.weight)
    optimizer.load_state_dict(last["optimizer"])


def test_what_goes_wrong_before_the_last_rename_leaves_the_last_checkpoint(tmp_path, model_and_optimizer):
    save_checkpoint(tmp_path, *model_and_optimizer, 1, {})
    # Of a user's: what is to be kept cannot get its name.
    (tmp_path / PREVIOUS).mkdir()
    with pytest.raises(OSError, match=PREVIOUS):
        save_checkpoint(tmp_path, *model_and_optimizer, 2, {})
    assert load_checkpoint(tmp_path / LAST)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [LAST, PREVIOUS]


def no_links(source, target):
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def step_in(path):
    return load_checkpoint(path)["step"] if path.exists() else None


@pytest.mark.parametrize("links", [True, False])
def test_a_power_cut_at_any_moment_leaves_two_whole_checkpoints(
    links, tmp_path, model_and_optimizer, monkeypatch
):
    held = []

    def look():
        held.append((step_in(tmp_path / LAST), step_in(tmp_path / PREVIOUS)))

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    unflushed = files_named_before_flushed(monkeypatch, look)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, *model_and_optimizer, step, {})
    look()
    assert held == [(None, None), (1, None), (1, 1), (2, 1), (2, 2), (3, 2)]
    assert unflushed == []


def save_where_files_may_not_grow(folder: Path, file: str, said: Connection) -> None:
    """As on a disk that is full; for a process of its own."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    model = nn.Linear(300, 300)
    try:
        if file == "last":
            save_checkpoint(folder, model, torch.optim.SGD(model.parameters(), lr=0.1), 2, {})
        else:
            written = {"identity": {"stock_model": {}}, "step": 1}
            write_weights(model.state_dict(), folder / f"model.{file}", written)
    except OSError as error:
        said.send((error.strerror, error.filename))


@pytest.mark.parametrize("file", ["last", "pth", "safetensors"])
def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path, model_and_optimizer, file):
    save_checkpoint(tmp_path, *model_and_optimizer, 1, {})
    heard, said = context().Pipe(duplex=False)
    process = context().Process(target=save_where_files_may_not_grow, args=(tmp_path, file, said))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    name = LAST if file == "last" else f"model.{file}"
    assert heard.recv() == ("File too large", str(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == [LAST]
    assert load_checkpoint(tmp_path / LAST)["step"] == 1


def test_pickled_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    (tmp_path / LAST).write_bytes(pickle.dumps(Payload()))
    torch.save({"format": 1, "x": Payload()}, tmp_path / PREVIOUS)
    for name in (LAST, PREVIOUS):
        with pytest.raises(AlignDetError, match="pickled objects"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_missing_damaged_and_foreign_files(tmp_path, model_and_optimizer):
    with pytest.raises(AlignDetError, match="no checkpoint"):
        load_checkpoint(tmp_path / LAST)
    path = save_checkpoint(tmp_path, *model_and_optimizer, 1, {})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AlignDetError, match="damaged"):
        load_checkpoint(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(AlignDetError, match="not an aligndet"):
        load_checkpoint(path)


def test_difference_names_the_leaf():
    saved = {"pretrain": {"seed": 0, "views": {"flip": 0.5}}, "steps": 10, "clusters": "a"}
    wanted = {"pretrain": {"seed": 0, "views": {"flip": 0.0}}, "steps": 10, "amp": True}
    assert identity_difference(saved, wanted) == [
        "amp: None -> True",
        "clusters: 'a' -> None",
        "pretrain.views.flip: 0.5 -> 0.0",
    ]


def test_a_run_goes_on_with_other_settings_for_speed_and_another_name(tmp_path, model_and_optimizer):
    # A version that had no compile_loss yet wrote none.
    old = {"config": "a", "pretrain": {"seed": 0, "channels_last": False}, "steps": 10}
    save_checkpoint(tmp_path, *model_and_optimizer, 1, old)
    faster = {
        "config": "b",
        "pretrain": {"seed": 0, "channels_last": True, "compile_backbone": True, "compile_loss": True},
        "steps": 10,
    }
    assert saved_run(tmp_path, faster)["step"] == 1
    with pytest.raises(AlignDetError, match=r"pretrain\.seed: 0 -> 1\n"):
        saved_run(tmp_path, {**faster, "pretrain": {"seed": 1}})


def test_without_its_last_checkpoint_a_run_does_not_begin_anew_unasked(tmp_path, model_and_optimizer):
    assert saved_run(tmp_path, {}) is None
    for step in (1, 2):
        save_checkpoint(tmp_path, *model_and_optimizer, step, {})
    (tmp_path / LAST).unlink()
    with pytest.raises(AlignDetError, match=r"no last\.pth, but .*previous\.pth: copy .*--no-resume"):
        saved_run(tmp_path, {})
    (tmp_path / PREVIOUS).rename(tmp_path / LAST)
    assert saved_run(tmp_path, {})["step"] == 1


def of_weights(digest, path, gone="gone.pth", **backbone):
    """The identity of a run whose backbone begins from two files; digest: of the first, None where that is gone too."""
    begin = [{"type": "Kaiming"}, {"type": "Pretrained", "checkpoint": path}, {"checkpoint": gone}]
    model = {"backbone": {"depth": 50, "init_cfg": begin, **backbone}}
    known = {INITIAL_WEIGHTS: {"init_cfg.1.checkpoint": digest}} if digest else {}
    return {"pretrain": {}, "stock_model": model, **known}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (of_weights("a", "moved.pth"), None),
        (of_weights("b", "old.pth"), r"initial_weights\.init_cfg\.1\.checkpoint: 'a' -> 'b'"),
        (of_weights(None, "old.pth"), None),
        (of_weights(None, "moved.pth"), r"stock_model\.backbone\.init_cfg: .*old\.pth.* -> .*moved\.pth"),
        (of_weights("a", "old.pth", gone="moved.pth"), r"'gone\.pth'.* -> .*'moved\.pth'"),
        (of_weights("a", "old.pth", depth=18), r"stock_model\.backbone\.depth: 50 -> 18\n"),
        (
            of_weights("a", "old.pth", init_cfg=[{"type": "Xavier"}, {"type": "Pretrained"}, {}]),
            "'Kaiming'.* -> .*'Xavier'",
        ),
    ],
)
def test_files_that_a_backbone_begins_from_are_known_by_content_where_both_runs_know_it(
    now, told, tmp_path, model_and_optimizer
):
    save_checkpoint(tmp_path, *model_and_optimizer, 1, of_weights("a", "old.pth"))
    if told is None:
        assert saved_run(tmp_path, now)["step"] == 1
        return
    with pytest.raises(AlignDetError, match=told):
        saved_run(tmp_path, now)


@pytest.mark.parametrize(
    "changed",
    [
        {"model": {1: torch.zeros(1)}},
        {"optimizer": []},
        {"stream": [1, 2]},
        {"identity": '{"a": [1, 2'},
        pytest.param({"step": 1.5}, id="half_a_step"),
    ],
)
def test_a_state_that_is_none_is_damage(changed, tmp_path, model_and_optimizer):
    path = save_checkpoint(tmp_path, *model_and_optimizer, 1, {})
    torch.save(torch.load(path, weights_only=True) | changed, path)
    with pytest.raises(AlignDetError, match=r"is damaged .*copy previous"):
        load_checkpoint(path)


def test_a_tensor_alone_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / LAST)
    with pytest.raises(AlignDetError, match="not an aligndet pretraining checkpoint"):
        load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("held", ["pretrain", "pretrain-backbone"])
def test_a_folder_of_the_other_verb_is_refused_in_a_sentence(held, tmp_path, model_and_optimizer):
    identities = {
        "pretrain": {"pretrain": {}},
        "pretrain-backbone": {"stage": "image-domain", "settings": {}},
    }
    save_checkpoint(tmp_path, *model_and_optimizer, 1, identities.pop(held))
    ((wanted, identity),) = identities.items()
    with pytest.raises(
        AlignDetError, match=f"of a run of `aligndet {held}`, and `aligndet {wanted}`"
    ) as refused:
        saved_run(tmp_path, identity)
    assert "--no-resume" not in str(refused.value), "it would overwrite the other's work"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"pretrain": {"global_batch": 2}}, "--batch-size times the number of processes"),
        ({"dataset": {"manifest": "b"}}, "changed or appended to since"),
        ({"steps": 7}, "\nUse another --work-dir"),
    ],
)
def test_another_run_is_told_by_what_may_have_changed_it(now, reason, tmp_path, model_and_optimizer):
    before = {"pretrain": {"global_batch": 4}, "dataset": {"manifest": "a"}, "steps": 8}
    save_checkpoint(tmp_path, *model_and_optimizer, 1, before)
    with pytest.raises(AlignDetError, match="belongs to another run") as refused:
        saved_run(tmp_path, before | now)
    assert reason in str(refused.value)
