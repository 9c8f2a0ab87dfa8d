"""The EMA teacher: averaged parameters, copied buffers, one shared backbone."""

import torch
from torch import nn

from aligndet_train.momentum import make_teacher, update_teacher


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
    # Learned queries are copied, not averaged (METHOD section 3).
    assert torch.equal(teacher.query_embedding.weight, student.query_embedding.weight)


def test_momentum_one_leaves_the_teacher_alone():
    student = Toy()
    teacher = make_teacher(student)
    before = teacher.neck.weight.clone()
    nn.init.ones_(student.neck.weight)
    update_teacher(teacher, student, momentum=1.0)
    assert torch.equal(teacher.neck.weight, before)
