"""The only door to a target: what each level tells, what it costs, and that nothing else leaks through it."""

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from midefense import seeds
from midefense.architectures.small import CNN
from midefense.oracle import BudgetExceeded, Oracle
from midefense.types import Access, Answer, Refused, Trace

LEVELS = list(Access)
FIELDS = ("labels", "probs", "logits", "features", "batchnorm")


def network() -> CNN:
    """A network in train mode whose batch norm has lived a little."""
    with seeds.isolated("oracle network"):
        model = CNN(classes=3, channels=1, size=8, widths=[4, 8], features=6)
        model(torch.rand(16, 1, 8, 8))
    return model.train()


def pictures(count: int = 4) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=seeds.generator("oracle pictures"))


def readable(access: Access) -> tuple[str, ...]:
    return tuple(field for field in FIELDS if field in access.reveals)


@pytest.mark.parametrize("access", LEVELS, ids=lambda level: level.value)
def test_an_answer_holds_what_was_asked_and_the_rest_is_none(access):
    oracle, reads = Oracle(network(), access), readable(access)
    answer = oracle(pictures(), reads=reads)
    assert {field for field in FIELDS if getattr(answer, field) is not None} == set(reads)
    for alone in reads:
        told = oracle(pictures(), reads=(alone,))
        assert [field for field in FIELDS if getattr(told, field) is not None] == [alone]


@pytest.mark.parametrize("access", LEVELS, ids=lambda level: level.value)
def test_hidden_fields_are_refused_before_they_cost(access):
    oracle = Oracle(network(), access)
    for hidden in set(FIELDS) - access.reveals:
        with pytest.raises(Refused, match=f"reads {hidden}, which access={access.value} hides"):
            oracle(pictures(), ids=[0] * 4, reads=(hidden,))
    if "weights" not in access.reveals:
        with pytest.raises(Refused, match="Oracle.weights reads weights"):
            oracle.weights()
        with pytest.raises(Refused, match="this question reads weights"):
            oracle(pictures(), reads=readable(access), weights={"classifier.bias": torch.zeros(3)})
    assert oracle.bill == {} and oracle.shared_bill == 0


def test_answers_are_those_of_the_model_in_eval_mode():
    model = network()
    answer = Oracle(model, "whitebox")(pictures(), reads=FIELDS)
    with torch.no_grad():
        trace = copy.deepcopy(model).eval()(pictures())
    assert torch.equal(answer.logits, trace.logits) and torch.equal(answer.features, trace.features)
    assert torch.equal(answer.probs, trace.logits.softmax(1)) and torch.equal(answer.labels, trace.logits.argmax(1))


def reachable(root: object) -> Iterable[object]:
    """Everything that attributes, slots and containers lead to; closures are not followed."""
    seen, queue = set(), [root]
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        yield thing
        if isinstance(thing, dict):
            queue += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            queue += list(thing)
        queue += list(getattr(thing, "__dict__", {}).values())
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        queue += [getattr(thing, name) for name in slots if hasattr(thing, name)]


@pytest.mark.parametrize("access", LEVELS, ids=lambda level: level.value)
def test_no_attribute_leads_to_the_model(access):
    oracle = Oracle(network(), access, budget=10)
    oracle(pictures(), ids=[0] * 4, reads=readable(access))
    leaks = [thing for thing in reachable(oracle) if isinstance(thing, nn.Module | torch.Tensor)]
    assert leaks == []


def test_the_search_for_leaks_finds_a_planted_one():
    oracle = Oracle(network(), "labels")
    oracle.notes = {"deep": [(network(),)]}
    assert any(isinstance(thing, nn.Module) for thing in reachable(oracle))


@pytest.mark.parametrize("access", [Access.LABELS, Access.SCORES, Access.FEATURES], ids=lambda level: level.value)
def test_a_black_box_gives_no_gradients(access):
    oracle, field = Oracle(network(), access), readable(access)[-1]
    with pytest.raises(Refused, match=f"expected images without gradients at access={access.value}"):
        oracle(pictures().requires_grad_(), reads=(field,))
    assert oracle.shared_bill == 0
    with torch.enable_grad():
        answer = getattr(oracle(pictures(), reads=(field,)), field)
    assert answer.grad_fn is None and not answer.requires_grad


@pytest.mark.parametrize("access", LEVELS, ids=lambda level: level.value)
def test_spoiling_an_answer_changes_no_later_one(access):
    oracle, reads = Oracle(network(), access), readable(access)
    with torch.no_grad():
        first, kept = oracle(pictures(), reads=reads), oracle(pictures(), reads=reads)
        for told in tensors_of(first):
            told.fill_(7)
        again = oracle(pictures(), reads=reads)
    for late, early in zip(tensors_of(again), tensors_of(kept), strict=True):
        assert torch.equal(late, early)


def tensors_of(answer: Answer) -> list[torch.Tensor]:
    """All that an answer tells, moments of every layer included."""
    moments = [value for told in (answer.batchnorm or {}).values() for value in vars(told).values()]
    return [told for told in (*vars(answer).values(), *moments) if isinstance(told, torch.Tensor)]


def test_every_image_is_counted_on_the_right_bill():
    oracle = Oracle(network(), "scores")
    oracle(pictures(4), ids=[3, 3, 5, 9])
    oracle(pictures(2), ids=torch.tensor([5, 5]))
    oracle(pictures(7))
    assert oracle.bill == {3: 2, 5: 3, 9: 1} and oracle.shared_bill == 7
    oracle.bill[3] = 0
    assert oracle.bill[3] == 2  # the bill handed out is a copy
    with pytest.raises(Refused, match="expected one id per image, got 1 ids for 4 images"):
        oracle(pictures(4), ids=[3])
    assert oracle.bill == {3: 2, 5: 3, 9: 1}


def test_one_forward_serves_all_readers_and_is_charged_once():
    model = network()
    calls = []

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, images, taps=()):
            calls.append(len(images))
            return self.inner(images, taps=taps)

    oracle = Oracle(Counting(), "whitebox")
    oracle(pictures(), ids=[0] * 4, reads=FIELDS)
    assert calls == [4] and oracle.bill == {0: 4}


def test_the_budget_is_checked_before_answering():
    oracle = Oracle(network(), "scores", budget=5)
    oracle(pictures(4), ids=[1, 1, 1, 2])
    with pytest.raises(BudgetExceeded, match="target 1 would reach 6 images, the budget is 5 per target"):
        oracle(pictures(4), ids=[2, 1, 1, 1])
    assert oracle.bill == {1: 3, 2: 1}  # not even target 2 was charged
    oracle(pictures(2), ids=[1, 1])
    assert oracle.bill[1] == 5  # the budget itself may be spent
    with pytest.raises(Refused, match="expected the target of every image, because the budget is per target"):
        oracle(pictures(4))  # or the shared bill would be a way around it
    assert oracle.shared_bill == 0
    with pytest.raises(Refused, match="attack.budget: expected at least 1 image per target or null, got 0"):
        Oracle(network(), "scores", budget=0)


def test_only_targets_of_the_group_can_be_charged():
    oracle = Oracle(network(), "scores", budget=5, ids=[1, 2])
    oracle(pictures(2), ids=[1, 2])
    with pytest.raises(Refused, match=r"expected targets of this group, got \[77\]"):
        oracle(pictures(2), ids=[1, 77])
    assert oracle.bill == {1: 1, 2: 1}


def test_white_box_gradients_reach_the_images_and_nothing_else():
    model, images = network(), pictures().requires_grad_()
    Oracle(model, "whitebox")(images, reads=("logits",)).logits[:, 0].sum().backward()
    reference = pictures().requires_grad_()
    copy.deepcopy(model).eval()(reference).logits[:, 0].sum().backward()
    assert torch.equal(images.grad, reference.grad) and images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.parameters())
    answer = Oracle(model, "whitebox")(pictures(), reads=("logits",))
    assert answer.logits.grad_fn is None  # frozen: without gradients of the images there is no graph


def test_weights_are_copies_and_take_gradients_when_passed_back():
    oracle = Oracle(network(), "whitebox")
    before = oracle(pictures(), reads=("logits",)).logits
    weights = oracle.weights()
    assert torch.equal(oracle(pictures(), reads=("logits",), weights=weights).logits, before)
    weights["classifier.bias"] = (weights["classifier.bias"] + 1).requires_grad_()
    moved = oracle(pictures(), reads=("logits",), weights=weights).logits
    torch.testing.assert_close(moved, before + 1)
    moved.sum().backward()
    assert weights["classifier.bias"].grad.tolist() == [4.0, 4.0, 4.0]  # one per image
    weights["classifier.weight"].zero_()  # copies: the target keeps its own
    assert torch.equal(oracle(pictures(), reads=("logits",)).logits, before)
    with pytest.raises(Refused, match=r"weights name parameters the target has not: \['head.bias'\]"):
        oracle(pictures(), reads=("logits",), weights={"head.bias": torch.zeros(3)})


def test_batchnorm_statistics_are_those_of_each_layers_input():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.BatchNorm2d(1), nn.BatchNorm2d(1)
            with torch.no_grad():
                self.first.weight.fill_(3.0)
                self.first.bias.fill_(1.0)

        def forward(self, images, taps=()):
            flat = self.second(self.first(images)).flatten(1)
            return Trace(flat, flat)

    images = torch.tensor([0.0, 1.0, 2.0, 5.0]).view(2, 1, 1, 2).requires_grad_()
    told = Oracle(Layers(), "whitebox")(images, reads=("batchnorm",)).batchnorm
    assert list(told) == ["first", "second"]
    first, second = told["first"], told["second"]
    assert first.mean.tolist() == [2.0] and first.var.tolist() == [3.5]  # mean of 0 1 2 5, biased variance
    assert second.mean.item() == pytest.approx(3 * 2 + 1, rel=1e-4)  # in eval mode: 3 x + 1
    assert second.var.item() == pytest.approx(9 * 3.5, rel=1e-4)
    assert torch.autograd.grad(first.mean.sum(), images)[0].unique().tolist() == [0.25]


def norms(**layers: nn.Module) -> nn.Module:
    """A network that passes images through its norms, by name, each flattened to what the norm takes."""

    class Norms(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.ModuleDict(layers)

        def forward(self, images, taps=()):
            for layer in self.body.values():
                dims = {nn.BatchNorm1d: 3, nn.BatchNorm3d: 5}.get(type(layer), 4)
                images = layer(images.reshape(*images.shape[:2], -1, *[1] * (dims - 3)))
            return Trace(images.flatten(1), images.flatten(1))

    return Norms()


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_moments_of_the_images_a_layer_learned_from_are_its_running_ones(kind):
    """DeepInversion's known zero: equal means, and variances that differ by n / (n - 1), biased against unbiased."""
    rng = seeds.generator("norms")
    one, other = (torch.rand(6, 2, 4, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    layers = {"one": kind(2, momentum=1.0).double(), "other": kind(2, momentum=1.0).double()}
    for layer, learned in zip(layers.values(), (one, other), strict=True):
        plain = nn.BatchNorm2d(2, momentum=1.0).double()  # the synchronised kind trains on a GPU only
        plain(learned)
        layer.load_state_dict(plain.state_dict())
    told = Oracle(norms(**layers), "whitebox")(one, reads=("batchnorm",)).batchnorm
    assert list(told) == ["body.one", "body.other"]
    count, close = 6 * 16, {"rtol": 0, "atol": 1e-14}
    first = told["body.one"]
    torch.testing.assert_close(first.mean, first.running_mean, **close)
    torch.testing.assert_close(first.var * count / (count - 1), first.running_var, **close)
    assert not torch.allclose(first.var, first.running_var, **close)
    for name, layer in layers.items():
        assert torch.equal(told[f"body.{name}"].running_mean, layer.running_mean)
        assert torch.equal(told[f"body.{name}"].running_var, layer.running_var)


def test_running_moments_are_copies_and_follow_the_weights_handed_in():
    model = norms(only=nn.BatchNorm2d(1))
    oracle = Oracle(model, "whitebox")
    told = oracle(pictures(), reads=("batchnorm",)).batchnorm["body.only"]
    told.running_mean.fill_(9)
    assert oracle.weights()["body.only.running_mean"].tolist() == [0]
    weights = oracle.weights() | {"body.only.running_mean": torch.tensor([3.0])}
    asked = oracle(pictures(), reads=("batchnorm",), weights=weights).batchnorm["body.only"]
    assert asked.running_mean.tolist() == [3] and asked.running_mean is not weights["body.only.running_mean"]


def test_a_layer_passed_twice_is_listed_twice_and_one_without_statistics_has_none():
    shared, bare = nn.BatchNorm2d(1), nn.BatchNorm2d(1, track_running_stats=False)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared, self.bare = shared, bare

        def forward(self, images, taps=()):
            flat = self.bare(self.shared(self.shared(images) + 1)).flatten(1)
            return Trace(flat, flat)

    told = Oracle(Twice(), "whitebox")(pictures(), reads=("batchnorm",)).batchnorm
    assert list(told) == ["shared", "shared (2)", "bare"]
    assert float(told["shared (2)"].mean - told["shared"].mean) == pytest.approx(1, abs=1e-4)
    assert told["bare"].running_mean is None and told["bare"].running_var is None


def test_batchnorm_of_a_target_without_it_is_refused():
    class Plain(nn.Module):
        def forward(self, images, taps=()):
            raise AssertionError("no forward is needed to refuse")

    with pytest.raises(Refused, match="has no BatchNorm"):
        Oracle(Plain(), "whitebox")(pictures(), reads=("batchnorm",))


def test_statistics_are_read_only_while_they_are_asked():
    oracle = Oracle(network(), "whitebox")
    answer = oracle(pictures(), reads=("batchnorm",))
    oracle(pictures(), reads=("logits",))
    assert len(answer.batchnorm) == 2


@pytest.mark.parametrize("access", ["features", "whitebox"])
def test_a_cut_moves_the_features_to_the_edge(access):
    model = network()
    released = Oracle(model, access, cut="stage1")(pictures(), reads=("features",)).features
    edge, _ = copy.deepcopy(model).eval().split("stage1")
    assert torch.equal(released, edge(pictures()))
    assert Oracle(model, access)(pictures(), reads=("features",)).features.shape == (4, 6)
    with pytest.raises(Refused, match="tap"):
        Oracle(model, access, cut="stage9")(pictures(), reads=("features",))


def test_asking_leaves_the_target_untouched():
    model = network()
    before = copy.deepcopy(model.state_dict())
    oracle = Oracle(model, "whitebox")
    oracle(pictures().requires_grad_(), reads=FIELDS).logits.sum().backward()
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        model.classifier.bias += 5  # and what happens to the target later does not reach the oracle
    assert torch.equal(oracle.weights()["classifier.bias"], before["classifier.bias"])


def test_answers_of_one_image_do_not_depend_on_its_batch():
    oracle = Oracle(network(), "scores")
    whole = oracle(pictures()).probs
    rows = torch.cat([oracle(row[None]).probs for row in pictures()])
    torch.testing.assert_close(rows, whole, atol=1e-6, rtol=0)


def test_an_empty_answer_is_all_none():
    assert all(value is None for name, value in vars(Answer()).items() if name != "beside") and Answer().beside == ()


def test_a_white_box_tells_the_outputs_of_stages_and_no_other_does():
    model, images = network().eval(), pictures()
    answer = Oracle(model, "whitebox")(images, reads=("logits",), taps=("stage1", "stage2"))
    expected = model(images, taps=("stage1", "stage2")).taps
    assert list(answer.taps) == ["stage1", "stage2"]
    assert all(torch.equal(answer.taps[name], expected[name]) for name in expected)
    assert Oracle(model, "whitebox")(images, reads=("logits",)).taps is None
    cut = Oracle(model, "whitebox", cut="stage1")(images, reads=("features",), taps=("stage2",))
    assert torch.equal(cut.features, expected["stage1"]) and list(cut.taps) == ["stage2"]
    for level in ("scores", "labels", "features"):
        with pytest.raises(Refused, match="hides"):
            Oracle(model, level)(images, reads=(next(iter(readable(Access(level)))),), taps=("stage1",))
