"""What goes on around the steps: the clock, the history of figures, a lack of memory."""

import os
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import IterTimerHook
from mmengine.logging import MessageHub
from torch import nn
from torch.utils.data import DataLoader, Dataset

from aligndet_train.distributed import wrapped
from aligndet_train.hooks import BoundedHistoryHook, ClockHook, StepHook, ThroughputHook
from aligndet_train.image_domain.hooks import FIXED_RATE, ScheduleHook
from aligndet_train.loop import memory_blamed
from proposals.errors import AlignDetError


def test_what_hooks_take_is_no_wait_for_images():
    timer, hub = IterTimerHook(), MessageHub("clock")
    runner = SimpleNamespace(hooks=[timer], message_hub=hub, iter=0, max_iters=9)
    timer._before_epoch(runner)
    time.sleep(0.2)  # a checkpoint
    ClockHook().after_train_iter(runner, 0)
    timer._before_iter(runner, 1)
    assert hub.get_scalar("train/data_time").current() < 0.1


def test_images_a_second_are_those_of_all_ranks_from_the_end_of_one_step_to_that_of_the_next(monkeypatch):
    hub, clock = MessageHub("throughput"), iter([100.0, 102.0, 110.0])
    monkeypatch.setattr("aligndet_train.hooks.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    hook, figures = ThroughputHook(images=8), []
    for step in range(3):
        hook.after_train_iter(SimpleNamespace(message_hub=hub), step)
        told = hub.log_scalars.get("train/images_per_second")
        figures.append(told and told.current())
    assert figures == [None, 4.0, 1.0]


def test_figures_are_kept_for_as_long_as_the_log_looks_back():
    hub = MessageHub("bounded")
    wrapper = SimpleNamespace(message_hub=MessageHub("of the optimizer"))
    hook = BoundedHistoryHook(5)
    for step in range(30):
        hub.update_scalar("train/loss", step)
        wrapper.message_hub.update_scalar("train/grad_norm", -step)
        hook.after_train_iter(SimpleNamespace(message_hub=hub, optim_wrapper=wrapper), step)
    history, _ = hub.get_scalar("train/loss").data
    assert history.tolist() == [25, 26, 27, 28, 29]
    assert len(wrapper.message_hub.get_scalar("train/grad_norm").data[0]) == 5


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(lambda seed: StepHook(seed, [1.0] * 2, [1.0] * 2), id="box_domain"),
        pytest.param(lambda seed: ScheduleHook(seed, [1.0] * 2), id="image_domain"),
    ],
)
def test_what_a_step_draws_hangs_on_seed_step_and_rank_alone(hook, monkeypatch):
    group = {"params": [nn.Parameter(torch.zeros(1))], "initial_lr": 1.0, FIXED_RATE: False}
    wrapper = SimpleNamespace(optimizer=torch.optim.SGD([group], lr=1.0))

    def draw(seed, step, rank):
        monkeypatch.setattr("aligndet_train.step_seed.get_rank", lambda: rank)
        hook(seed).before_train_iter(SimpleNamespace(iter=step, optim_wrapper=wrapper), 0)
        return torch.rand(1).item()

    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    drawn = [draw(*place) for place in places]
    assert len(set(drawn)) == len(places)
    assert [draw(*place) for place in places] == drawn


class Killed(Dataset):
    """Its process ends as by the system's killer of processes that take too much memory."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(1)


def test_a_process_that_the_system_killed_is_no_fault_of_ours():
    with (
        pytest.raises(AlignDetError, match=r"DataLoader worker .*\. Most often .*fewer --workers"),
        memory_blamed(),
    ):
        list(DataLoader(Killed(), num_workers=1))


def test_a_gpu_that_is_full_is_no_fault_of_ours():
    with pytest.raises(AlignDetError, match=r"Tried to allocate .*--batch-size"), memory_blamed():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
    with pytest.raises(RuntimeError, match="else"), memory_blamed():
        raise RuntimeError("something else")


def test_batch_statistics_of_all_ranks_are_those_of_each_on_cpus():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.SyncBatchNorm(4))
    weights = list(model.parameters())
    plain = wrapped(model)
    assert type(plain[1]) is not nn.SyncBatchNorm
    assert all(mine is theirs for mine, theirs in zip(plain.parameters(), weights, strict=True))
    assert plain(torch.rand(2, 3, 5, 5)).shape == (2, 4, 5, 5)
