"""Composing again: files are parsed once as long as they are the same on disk, and nothing of one configuration is left
in the next."""

import os

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource

from midefense.plan.compose import compose


@pytest.fixture
def experiment(tmp_path):
    """`experiment(text)` writes `experiment/x.yaml` into a folder that is searched; the words that choose it."""
    file = tmp_path / "experiment" / "x.yaml"
    file.parent.mkdir()

    def write(text):
        file.write_text(f"# @package _global_\n{text}\n")
        os.utime(file, ns=(0, 0))  # a clock may not have moved on between two of them
        return [f"hydra.searchpath=[file://{tmp_path}]", "experiment=x"]

    return write


def test_a_file_that_changed_is_read_again(experiment):
    assert [compose("attack", experiment(f"seed: {seed}"))[0]["seed"] for seed in (3, 4, 5)] == [3, 4, 5]


def test_a_file_that_did_not_change_is_parsed_once(experiment, monkeypatch):
    words = experiment("defaults: [override /defense: random_erasing]\nseed: 3")
    first = compose("attack", words)
    monkeypatch.setattr(FileConfigSource, "load_config", None)
    assert compose("attack", words) == first
    changed, choices = compose("attack", [*words, "seed=4", "attack.search.steps=1"])
    assert (changed["seed"], changed["attack"]["search"]["steps"], choices["defense"]) == (4, 1, "random_erasing")
    assert compose("attack", words) == first, "nothing of one is left in the next"


def test_a_default_may_name_what_was_chosen(experiment, tmp_path):
    (tmp_path / "defense").mkdir()
    (tmp_path / "defense" / "x.yaml").write_text("strength: 3\n")
    words = experiment("defaults: [{/defense@second: '${experiment}'}]")
    assert compose("attack", words)[0]["second"] == {"strength": 3}
