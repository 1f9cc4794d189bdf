"""StyleGAN2's kernels for a GPU give what torch's operations give, and their gradients; steps that are recorded for
replay see the numbers of the call. (On a GPU: benchmarks/gpu.py.)"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from midefense import capturing

SCRIPT = Path(__file__).parent / "stylegan2_kernels_in_words.py"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="this build of torch has no Triton")
@pytest.mark.parametrize("form", ["side by side", pytest.param("apart", marks=pytest.mark.slow)])
def test_kernels_give_what_torchs_operations_give(form):
    run = subprocess.run([sys.executable, str(SCRIPT), form], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    worst = {name: max(values) for name, values in json.loads(run.stdout).items()}
    assert len(worst) == 4 + 4 + 4
    assert max(worst.values()) < 2e-5, {key: value for key, value in worst.items() if value >= 2e-5}


class _Graph:
    """Stands for torch.cuda.CUDAGraph: what is recorded runs again at every replay."""

    recording = None

    def __init__(self):
        self.steps = []

    def replay(self):
        for step in self.steps:
            step()


class _Recorded:
    def __init__(self, graph):
        self.graph = graph

    def __enter__(self):
        _Graph.recording = self.graph

    def __exit__(self, *_):
        _Graph.recording = None


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", _Graph)
    monkeypatch.setattr(torch.cuda, "graph", _Recorded)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


def test_a_recorded_step_sees_the_numbers_of_each_call(no_gpu):
    calls, given = [], torch.zeros(2)

    def step(values):
        def run():
            calls.append("ran")
            given.copy_(values * 2)

        run() if _Graph.recording is None else _Graph.recording.steps.append(run)
        return given

    captured = capturing.Captured(step, torch.device("cuda"))
    for number in range(6):
        handed = torch.full((2,), float(number))
        assert captured(handed).tolist() == [2.0 * number] * 2
        assert handed.tolist() == [float(number)] * 2
    assert len(calls) == 6, "each call runs the step once, the one that records too"


def test_elsewhere_a_step_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", None)  # would fail
    captured = capturing.Captured(lambda values: values + 1, torch.device("cpu"))
    assert [captured(torch.tensor(number)).item() for number in range(6)] == [1, 2, 3, 4, 5, 6]
