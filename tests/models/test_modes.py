"""Evaluation mode ends where it began."""

import pytest
import torch
from torch import nn

from hf_vitmae.models.modes import evaluating


def test_each_module_gets_its_own_mode_back_even_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.Linear(2, 2)).train()
    model[0].eval()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        raise RuntimeError
    assert [module.training for module in model.modules()] == [True, False, True]
    assert torch.is_grad_enabled()
