"""The EMA teacher: averaged parameters, copied buffers, one shared backbone."""

import re

import pytest
import torch
from torch import nn

from aligndet_train.momentum import make_teacher, random_share, teacher_line, update_teacher
from aligndet_train.schedules import half_cosine


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Linear(2, 2)
        self.backbone = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.query_embedding = nn.Embedding(3, 2)


def test_teacher_shares_the_backbone_without_owning_it():
    student = Toy()
    teacher = make_teacher(student)
    assert teacher.backbone is student.backbone
    assert not any(name.startswith("backbone") for name in teacher.state_dict())
    assert sorted(student.state_dict()) == sorted(Toy().state_dict())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_update_is_the_exponential_moving_average():
    torch.manual_seed(0)
    student = Toy()
    teacher = make_teacher(student)
    expected = teacher.neck.weight.clone()
    for step in range(20):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
            student.norm.running_mean.fill_(step)
        update_teacher(teacher, student, momentum=0.9)
        expected = 0.9 * expected + 0.1 * student.neck.weight.detach()
    assert torch.allclose(teacher.neck.weight, expected, atol=1e-6)
    assert torch.equal(teacher.norm.running_mean, student.norm.running_mean)
    # Learned queries are copied, not averaged (as in the release).
    assert torch.equal(teacher.query_embedding.weight, student.query_embedding.weight)


def test_momentum_one_leaves_the_teacher_alone():
    student = Toy()
    teacher = make_teacher(student)
    before = teacher.neck.weight.clone()
    nn.init.ones_(student.neck.weight)
    update_teacher(teacher, student, momentum=1.0)
    assert torch.equal(teacher.neck.weight, before)


def test_the_share_of_a_teachers_start_is_what_real_updates_leave():
    student = Toy()
    nn.init.ones_(student.neck.weight)
    teacher = make_teacher(student)
    nn.init.zeros_(student.neck.weight)
    momentum = half_cosine(0.996, 1.0, 525)
    for value in momentum:
        update_teacher(teacher, student, float(value))
    assert teacher.neck.weight.mean().item() == pytest.approx(random_share(momentum), rel=1e-3)
    assert random_share(momentum) == pytest.approx(0.35, abs=0.01)


@pytest.mark.parametrize("steps", [100, 300, 525, 700])
def test_a_run_whose_teacher_stays_random_says_what_to_try(steps):
    advice = re.search(r"momentum_start=([\d.]+)", teacher_line(half_cosine(0.996, 1.0, steps)))
    advised = half_cosine(float(advice[1]), 1.0, steps)
    assert random_share(advised) < 0.001
    assert "try" not in teacher_line(advised)


@pytest.mark.parametrize(
    ("start", "steps"), [(0.996, 6000), (0.996, 40), (0.3, 200), (0.9999, 1), (1.0, 90_000), (0.0, 1)]
)
def test_advice_is_never_a_slower_teacher_or_one_that_stands_still(start, steps):
    line = teacher_line(half_cosine(start, 1.0, steps))
    advised = [float(number) for number in re.findall(r"momentum_start=([\d.]+)", line)]
    assert all(0.7 < number < start for number in advised)
