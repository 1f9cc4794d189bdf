"""What is set before work begins, so that a command gives the same bits twice on a GPU."""

import os

import pytest
import torch

from midefense.compute import Compute


@pytest.fixture
def settings_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    yield monkeypatch
    torch.use_deterministic_algorithms(before[0])
    torch.backends.cudnn.benchmark = before[1]
    torch.utils.deterministic.fill_uninitialized_memory = True


def settings():
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_on_a_gpu_kernels_add_in_a_fixed_order(settings_put_back):
    settings_put_back.setattr(Compute, "device", lambda self: torch.device("cuda", 0))
    torch.backends.cudnn.benchmark = True
    Compute().prepare()
    assert settings() == (True, True, False, ":4096:8")


def test_a_workspace_that_is_set_already_stays(settings_put_back):
    settings_put_back.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    settings_put_back.setattr(Compute, "device", lambda self: torch.device("cuda", 0))
    Compute().prepare()
    assert settings()[-1] == ":16:8"


def test_a_cpu_needs_none_of_it(settings_put_back):
    before = settings()
    Compute(accelerator="cpu").prepare()
    assert settings() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_step_twice_gives_the_same_bits_on_a_gpu(settings_put_back):
    from midefense.attacks.views import RandomResizedCrop
    from midefense.resampling import resized

    Compute().prepare()
    view = RandomResizedCrop(scale=(0.5, 0.9), ratio=(0.8, 1.2), flip=0.5)
    draws = view.draw(16, torch.Generator().manual_seed(0)).cuda()
    images = torch.rand(16, 3, 256, 256, generator=torch.Generator().manual_seed(1)).cuda().requires_grad_()

    def gradient():
        (found,) = torch.autograd.grad(resized(view(images, draws), 112).square().sum(), images)
        return found

    first = gradient()
    assert all(gradient().equal(first) for _ in range(5))
