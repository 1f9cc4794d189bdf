"""A compiled search: the same results, one compilation for all groups and chunks, and none where it cannot be."""

import functools

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.testing import CompileCounter

from midefense import compiling, seeds
from midefense.architectures.small import MLP
from midefense.attacks.base import SearchAttack
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import TargetConfidence
from midefense.oracle import Oracle
from midefense.priors.gmi import GmiGan
from midefense.priors.stylegan2.prior import StyleGan2Trained
from midefense.types import Evidence, Images


@pytest.fixture
def world():
    with seeds.isolated("compiled"):
        prior = GmiGan(channels=1, size=32, width=2, latent_size=8).eval().requires_grad_(False)
        return prior, MLP(classes=4, channels=1, size=32, widths=[8])


def attack_of(**changes):
    return SearchAttack(
        init=Random(candidates=2),
        objective=CrossEntropy(),
        search=Gradient(optimizer=functools.partial(torch.optim.SGD, lr=0.05), steps=3),
        select=TargetConfidence(keep=1),
        **{"compile": True, "group": 5, "chunk": 4, **changes},
    )


def recovered(attack, world, groups=(5, 5, 3), targets=13):
    """What is selected in each group, by oracles of their own; and how many images were asked."""
    prior, target = world
    attack.targets = targets
    found, asked = [], 0
    for index, size in enumerate(groups):
        oracle = Oracle(target, "whitebox")
        evidence = Evidence(torch.arange(size) % 4, torch.arange(size))
        *_, last = attack.recover({}, prior, oracle, evidence, seeds.generator("compiled", index))
        found.append(last.latents)
        asked += sum(oracle.bill.values())
    return torch.cat(found), asked


@pytest.fixture
def counter(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compiling, "BACKEND", counter)
    return counter


def test_groups_and_ragged_chunks_compile_nothing_again(world, counter):
    """Chunks of 4, 4 and 2 rows; the last group has 4 and 2. The generator and the target, once each."""
    compiled = recovered(attack_of(), world)
    assert counter.frame_count == 2
    usual = recovered(attack_of(compile=False), world)
    torch.testing.assert_close(compiled[0], usual[0], rtol=0, atol=1e-6)
    assert compiled[1] == usual[1] == 13 * 2 * 4, "images are counted, once each"
    assert counter.frame_count == 2


def test_which_rows_are_compiled_does_not_depend_on_what_ran_before(world, counter):
    """A run that goes on with its last, smaller group must give the bits of one that was never killed."""
    recovered(attack_of(chunk=None), world, groups=(3,))
    assert counter.frame_count == 0, "6 rows of 10"
    recovered(attack_of(chunk=None), world, groups=(3,), targets=3)
    assert counter.frame_count == 2, "all there are"


def test_where_compiling_fails_the_search_goes_on(world, monkeypatch, capsys):
    torch._dynamo.reset()

    def no_compiler(graph, inputs):
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(compiling, "BACKEND", no_compiler)
    found = recovered(attack_of(), world)
    assert found[0].equal(recovered(attack_of(compile=False), world)[0])
    said = capsys.readouterr().err
    assert said.count("attack.compile: torch.compile failed here") == 1 and "no working C++ compiler" in said
    assert len(said.splitlines()) == 1


def test_a_mistake_of_the_network_is_not_taken_for_one_of_the_compiler(world, counter):
    prior, target = world
    target.forward = lambda images, taps=(): (_ for _ in ()).throw(ArithmeticError("of its own"))
    with pytest.raises(ArithmeticError, match="of its own"):
        recovered(attack_of(), (prior, target))


PUBLIC = Images(torch.randint(0, 256, (8, 1, 32, 32), dtype=torch.uint8), torch.zeros(8).long(), torch.arange(8), ["-"])


def learned(kind, **changes):
    with seeds.isolated("learned"):
        shape = {"channels": 1, "size": 32, "steps": 4, "batch_size": 4, "unit": 4, **changes}
        if kind is GmiGan:
            prior = GmiGan(width=1, latent_size=4, critic_steps=2, **shape)
        else:
            prior = StyleGan2Trained(latent_size=4, channel_base=32, channel_max=4, r1_every=2, **shape)
    *_, (_, _, state) = prior.fit(PUBLIC, seed=0)
    assert "forward" not in {**vars(prior.generator), **vars(prior.critic)}, "as it was"
    return state()


@pytest.mark.parametrize(("kind", "precision"), [(GmiGan, "32-true"), (GmiGan, "bf16-mixed")])
def test_a_generator_learns_compiled(counter, kind, precision):
    """With and without a gradient: two graphs, whatever the number of steps."""
    compiled = learned(kind, compile=True, precision=precision)
    first = counter.frame_count
    learned(kind, compile=True, precision=precision, steps=8)
    assert 0 < first == counter.frame_count <= 2
    usual = learned(kind, precision=precision)
    for name, value in usual.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_stylegan2_learns_compiled(counter):
    compiled, usual = learned(StyleGan2Trained, compile=True), learned(StyleGan2Trained)
    assert counter.frame_count <= 2
    for name, value in usual.items():
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-3)


@pytest.mark.slow
def test_the_compiler_of_this_machine(world, capsys):
    torch._dynamo.reset()
    found = recovered(attack_of(), world)
    torch.testing.assert_close(found[0], recovered(attack_of(compile=False), world)[0], rtol=0, atol=1e-5)
    assert "failed" not in capsys.readouterr().err
    assert issubclass(torch._dynamo.exc.BackendCompilerFailed, TorchDynamoException)
