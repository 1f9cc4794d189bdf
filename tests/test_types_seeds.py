"""The nouns and the randomness: what an access level reveals, what a refusal says, what a key draws."""

import subprocess
import sys

import pytest
import torch

from midefense import seeds
from midefense.types import (
    Access,
    Evidence,
    Found,
    Images,
    Refused,
    clip_images,
    refuse_unknown,
)


@pytest.mark.parametrize(
    ("level", "reveals"),
    [
        ("labels", {"labels"}),
        ("scores", {"labels", "probs"}),
        ("features", {"features"}),
        ("whitebox", {"labels", "probs", "logits", "features", "batchnorm", "gradient", "weights"}),
    ],
)
def test_what_each_access_level_reveals(level, reveals):
    assert Access.parse(level).reveals == reveals
    assert Access.parse(level.upper()) is Access.parse(Access.parse(level)) is Access(level)
    for name in Access.WHITEBOX.reveals:
        if name in reveals:
            Access(level).require([name], "a part")
        else:
            with pytest.raises(Refused, match=rf"^a part reads {name}, which access={level} hides"):
                Access(level).require([name], "a part")


def test_an_access_refusal_names_the_levels_that_would_do():
    with pytest.raises(Refused, match="levels that would do: scores, whitebox"):
        Access.LABELS.require(["probs"], "select")
    with pytest.raises(Refused, match="access: got 'score'; choices: .* Did you mean 'scores'"):
        Access.parse("score")


def test_a_refusal_lists_the_choices_and_the_near_miss():
    text = str(refuse_unknown("prior.start", "grau", ["zeros", "grey"], "See the README."))
    assert text == "prior.start: got 'grau'; choices: zeros, grey. See the README."
    assert "Did you mean 'grey'?" in str(refuse_unknown("prior.start", "gray", ["zeros", "grey"]))
    assert "choices: none." in str(refuse_unknown("metrics", "fid", []))


def test_images_become_floats_and_are_taken_by_class():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2).clone()
    images = Images(pixels, torch.tensor([0, 1, 1]), torch.tensor([7, 8, 9]), ["ann", "bob"])
    assert len(images) == 3
    assert images.floats()[:, 0, 0, 0].tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert images.floats(torch.tensor([2])).mean() == 1
    assert images.pixels.dtype == torch.uint8 and images.pixels.max() == 255  # floats() left them alone
    assert images.of_class(1).ids.tolist() == [8, 9]
    assert images.take(torch.tensor([2, 0])).labels.tolist() == [1, 0]


def test_evidence_is_taken_with_what_was_observed():
    evidence = Evidence(torch.tensor([4, 5]), torch.tensor([40, 50]), torch.eye(2))
    part = evidence.take(torch.tensor([1]))
    assert (part.labels.tolist(), part.ids.tolist(), part.observed.tolist()) == ([5], [50], [[0.0, 1.0]])
    assert Evidence(evidence.labels, evidence.ids).take(slice(0, 1)).observed is None


def test_found_detached_is_safe_from_later_steps():
    latents = torch.zeros(2, 3, requires_grad=True)
    found = Found(latents, torch.ones(2), torch.tensor([0, 1]), "optimised")
    kept = found.detached()
    with torch.no_grad():
        latents += 1
    assert kept.latents.abs().sum() == 0 and not kept.latents.requires_grad
    assert kept.stage == "optimised" and kept.scores is None


def test_images_are_clipped_once_and_leave_the_graph():
    images = torch.tensor([-1.0, 0.5, 2.0], requires_grad=True)
    clipped = clip_images(images)
    assert clipped.tolist() == [0.0, 0.5, 1.0] and not clipped.requires_grad


# The seeds below are part of every stored artefact's identity: a change here changes every published number.
def test_derived_seeds_are_pinned():
    assert seeds.derive(0, "attack", "recover", 3) == 5070828597308409382
    assert seeds.derive("a") == 5476949362331446667
    assert torch.rand(3, generator=seeds.generator("known")).tolist() == pytest.approx(
        [0.4744, 0.7152, 0.8084], abs=1e-4
    )


def test_keys_that_look_alike_differ():
    keys = [(1,), ("1",), (1, 1), (11,), ("1", "1"), ("1\x1f1",), (1, "1"), (), ("",)]
    drawn = [seeds.derive(*key) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in drawn)


def test_seeds_are_the_same_in_another_process():
    script = "from midefense import seeds; print(seeds.derive('group', 3))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) == seeds.derive("group", 3)


def test_a_fork_depends_on_the_seed_and_the_purpose_alone():
    fresh, drawn = seeds.generator("group", 0), seeds.generator("group", 0)
    torch.rand(1000, generator=drawn)
    same = [torch.rand(4, generator=seeds.fork(rng, "search")) for rng in (fresh, drawn)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], torch.rand(4, generator=seeds.fork(fresh, "select")))
    assert not torch.equal(same[0], torch.rand(4, generator=seeds.fork(seeds.generator("group", 1), "search")))


def test_isolated_draws_repeat_and_leave_the_global_stream_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeds.isolated("dropout", 1):
        first = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeds.isolated("dropout", 1):
        assert torch.equal(torch.rand(4), first)
    with seeds.isolated("dropout", 2):
        assert not torch.equal(torch.rand(4), first)


def test_isolated_restores_the_stream_after_an_error():
    torch.manual_seed(4)
    expected = torch.rand(2)
    torch.manual_seed(4)
    with pytest.raises(KeyError), seeds.isolated("x"):
        torch.rand(10)
        raise KeyError
    assert torch.equal(torch.rand(2), expected)
