"""benchmarks/gpu.py at shapes a CPU can do: every part runs, and a limit costs the last row of a part alone."""

import importlib.util
import sys
import time

import pytest
import torch
from conftest import ROOT

PARTS = ["correct", "crops", "gmi", "ppa", "stylegan2", "engine", "optimisers"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("part", PARTS)
def test_a_part_tells_its_rows(script, part, capsys):
    script.main(["--tiny", "--device", "cpu", "--together", "--parts", part])
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(f"| {part} |")]
    assert len(rows) >= 2 and not any("nan" in row.split() for row in rows)
    (measured,) = [line for line in lines if line.startswith("measured ")]
    assert torch.__version__ in measured and "a CPU" in measured


def test_all_parts_fit_into_seven_minutes(script):
    assert {*script.PARTS} == {*PARTS, "repeat"}
    assert sum(seconds for _, seconds in script.PARTS.values()) <= 420


def test_known_answers_are_near_and_a_wrong_network_is_not(script, monkeypatch):
    bench = script.Bench(torch.device("cpu"), True, None)
    assert all(float(row.value) < 1e-5 for row in script.correct(bench))
    # a device that rounds: half of what float32 can hold is lost
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self.bfloat16().float())
    assert max(float(row.value) for row in script.correct(bench)) > 1e-4


def test_what_is_not_the_same_twice_is_said(script, monkeypatch):
    bench = script.Bench(torch.device("cpu"), True, None)
    assert all("the same twice" in row.value and "NOT" not in row.value for row in script.crops(bench))
    exact = script.both_ways
    monkeypatch.setattr(script, "both_ways", lambda way, images: exact(way, images) + 1e-6 * torch.rand(()))
    assert all("NOT the same twice" in row.value for row in script.crops(bench))


def test_stores_are_compared_to_the_bit(script, tmp_path):
    from safetensors.torch import save_file

    def write(name, value):
        folder = tmp_path / name / "target" / "toy@h1"
        folder.mkdir(parents=True)
        save_file({"weight": torch.tensor([value, torch.nan]), "none": torch.zeros(0)}, folder / "tensors.safetensors")
        return tmp_path / name

    one, twin, other, empty = write("one", 1.0), write("twin", 1.0), write("other", 1.0 + 2**-23), tmp_path / "empty"
    assert script.same(one, twin) == "1 artefacts, equal to the bit"
    assert script.same(one, other) == "NOT equal: target by 1.2e-07"
    assert script.same(one, empty) == script.same(empty, empty) == "NOT the same artefacts"


@pytest.mark.slow
def test_a_limit_costs_the_row_that_was_being_measured(script, tmp_path, monkeypatch):
    """The part's own process tells rows as they come; one that hangs is killed, and the next part runs."""
    hanging = tmp_path / "hanging.py"
    source = (ROOT / "benchmarks" / "gpu.py").read_text()
    source = source.replace("ROOT = HERE.parent", f"ROOT = Path({str(ROOT)!r})")
    source = source.replace("def optimisers(bench: Bench) -> Iterator[Row]:", HANGING)
    hanging.write_text(source)
    monkeypatch.setattr(script, "__file__", str(hanging))
    options = script.parsed(["--tiny", "--device", "cpu", "--limit", "40"])
    started = time.monotonic()
    rows = script.in_a_process("optimisers", options, tmp_path)
    assert [row.what for row in rows] == ["measured", "(not all)"] and rows[1].value == "stopped after 40 s"
    assert time.monotonic() - started < 60


HANGING = """def optimisers(bench):
    yield Row("optimisers", "measured", "1")
    time.sleep(100)


def unused(bench: Bench) -> Iterator[Row]:"""


def test_parts_that_are_not_there_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--parts", "ppa,warp"])
    assert "--parts: expected some of correct" in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_bits_twice_killed_and_by_two_processes(script, capsys):
    script.main(["--tiny", "--device", "cpu", "--together", "--parts", "repeat"])
    told = capsys.readouterr().out
    assert told.count("artefacts, equal to the bit") == 2 * 3 and "NOT" not in told
