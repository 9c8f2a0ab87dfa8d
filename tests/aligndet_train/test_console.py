"""The lines a person sees of a run."""

import warnings
from types import SimpleNamespace

import pytest
import torch

from aligndet_train import console


@pytest.fixture
def every_warning_is_an_error():
    # Of its own accord torch warns once a process, in whichever test comes first.
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    torch.set_warn_always(before)


def test_a_loss_with_its_gradient_is_told_without_a_warning(every_warning_is_an_error, monkeypatch, capsys):
    monkeypatch.setattr(console, "_SECONDS", -1.0)
    loss = torch.tensor(0.5, requires_grad=True) * 2.5
    with console.volume("normal"):
        console.ProgressHook().after_train_iter(
            SimpleNamespace(iter=2, max_iters=6), 2, outputs={"loss": loss}
        )
    assert capsys.readouterr().out.startswith("step 3 of 6, loss 1.250, ")
