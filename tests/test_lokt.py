"""LOKT: a GAN and students that learn from the target's labels alone, what they cost, and a search that asks nobody."""

import functools
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import plan_for
from learned_doubles import Quarters, Student
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from midefense import seeds
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.learning import Learning, samples_of_classes
from midefense.attacks.objectives import MaxMargin
from midefense.attacks.search.gradient import Gradient
from midefense.attacks.select import Everything
from midefense.attacks.surrogate import ClassHead, Labelled
from midefense.oracle import Oracle, Panel
from midefense.pipeline.pipeline import Pipeline
from midefense.priors.augmentation import Augmentation
from midefense.priors.lokt import LoktGan
from midefense.priors.taught import Labels
from midefense.priors.toy import ToyFamily
from midefense.types import Access, Evidence, Images, Refused, Trace

PRIOR = ToyFamily(channels=1, size=16).requires_grad_(False)
EVIDENCE = Evidence(torch.tensor([0, 2, 3]), torch.tensor([10, 12, 13]))
DRAWS = torch.Generator().manual_seed(0)


def public(count=40, channels=1):
    pixels = torch.randint(256, (count, channels, 32, 32), dtype=torch.uint8, generator=DRAWS)
    return Images(pixels, torch.zeros(count), torch.arange(count), ["a"])


def gan(**changes):
    options = {"classes": 4, "channels": 1, "size": 32, "latent_size": 6, "width": 2, "steps": 12, "batch_size": 4}
    with seeds.isolated("gan"):
        return LoktGan(**{**options, "warmup": 3, "critic_steps": 5, "unit": 5, **changes})


def fitted(prior, target, **changes):
    """What every unit told, and the oracle that was asked."""
    oracle = Oracle(target, "labels")
    told = [logs for _, logs, _ in prior.fit(public(), seed=0, oracle=oracle, **changes)]
    return told, oracle


# the GAN ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "warmup", "batch", "asked"),
    [(12, 3, 4, 32), (30, 10, 32, 608), (5, 4, 4, 0), (5, 9, 4, 0), (3, 0, 5, 10)],
)
def test_the_target_is_asked_about_a_batch_of_every_step_behind_the_warm_up(steps, warmup, batch, asked):
    target = Quarters()
    _, oracle = fitted(gan(steps=steps, warmup=warmup, batch_size=batch), target)
    assert oracle.shared_bill == sum(target.seen) == asked == max(0, steps - warmup - 1) * batch and oracle.bill == {}


class Watching(Quarters):
    """Keeps the least number it was shown of each batch, from its copies too."""

    def forward(self, images, taps=()):
        assert not images.requires_grad and not torch.is_grad_enabled()
        trace = super().forward(images)
        self.seen[-1] = float(images.min())
        return trace


@pytest.mark.parametrize("clip", [True, False])
def test_the_target_is_shown_pictures(clip):
    target = Watching()
    fitted(gan(clip=clip), target)
    assert (min(target.seen) >= 0) is clip, "a generator that has learned nothing makes numbers below 0"


def test_no_class_and_no_generator_step_at_the_wrong_time(monkeypatch):
    """A generator's step follows steps 0, 5, 10; the class counts in steps 4 and later, in both losses."""
    prior, steps = gan(), []
    for name in ("discriminator_step", "generator_step"):
        original = getattr(prior, name)
        monkeypatch.setattr(
            prior,
            name,
            lambda *given, name=name, original=original: steps.append((name[0], given[-1])) or original(*given),
        )
    fitted(prior, Quarters())
    assert "".join(kind for kind, _ in steps) == "dgdddddgdddddgd"
    classes = [label is not None if kind == "d" else label for kind, label in steps]
    assert classes == [False] * 5 + [True] * 10


def test_a_loss_at_rest_is_that_of_no_opinion():
    """Card, section 8: L_D close to 2 ln 2 and the class term close to ln K before anything was learned."""
    prior = gan(classes=50, width=8, learning_rate=1e-9)
    told, _ = fitted(prior, Fixed(7), state=None)
    assert told[0]["critic_loss"] == pytest.approx(2 * math.log(2) + 0.2 * 1.5 * math.log(50), rel=0.2)
    assert told[1]["class_loss"] == pytest.approx(math.log(50), rel=0.2)


class Fixed(nn.Module):
    """A target that says one class of whatever it sees."""

    def __init__(self, label, classes=50):
        super().__init__()
        self.register_buffer("logits", F.one_hot(torch.tensor(label), classes).float())

    def forward(self, images, taps=()):
        return Trace(self.logits.expand(len(images), -1), images.flatten(1))


class Reads(TorchDispatchMode):
    """Counts how often a number is read off a tensor, for which the device must be waited for."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def test_asking_does_not_wait_for_the_device():
    ask = Labels(gan(classes=50), Oracle(Fixed(7), "labels"))
    with Reads() as reads:
        assert (ask(torch.rand(4, 1, 32, 32)) == 7).sum() == 4
    assert reads.count == 1, "the assertion's own"


@pytest.mark.parametrize("label", [3, 4])
def test_labels_of_other_classes_are_refused_before_a_state_is_kept(label):
    work = gan(classes=4).fit(public(), seed=0, oracle=Oracle(Fixed(label), "labels"))
    if label < 4:
        assert len(list(work)) == 3
        return
    with pytest.raises(Refused, match="LoktGan: expected a target of 4 classes, got one of 5"):
        next(work)


def test_the_target_decides_nothing_of_a_generator_step():
    """With the discriminator held, what the target says leaves the generator's step as it is."""

    def generator_of(label):
        prior = gan(steps=5, warmup=0, critic_steps=2)
        prior.discriminator_step = lambda optimizer, real, fake, labels: {}
        fitted(prior, Fixed(label, 4))
        return prior.generator.state_dict()

    left, right = generator_of(0), generator_of(3)
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_its_realism_and_its_classifier_are_the_discriminators():
    prior = gan().eval()
    images = prior.decode(prior.sample(5, DRAWS))
    realness, logits = prior.critic(images)
    assert torch.equal(prior.realism(images), F.logsigmoid(realness))
    torch.testing.assert_close(prior.classifier()(images).logits, logits)
    with pytest.raises(Refused, match="ToyFamily has no classifier; try prior=lokt_gan"):
        PRIOR.classifier()


def squares(count, rng):
    """Pictures of one of four hues [count, 3, 32, 32], and which."""
    hues = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.9, 0.9, 0.1]])
    labels = torch.randint(4, (count,), generator=rng)
    noise = 0.05 * torch.rand(count, 3, 32, 32, generator=rng)
    return (hues[labels][..., None, None] + noise).clamp(0, 1), labels


class Hues(nn.Module):
    """Tells the four apart by their mean colours."""

    def forward(self, images, taps=()):
        red, green, blue = images.mean((2, 3)).unbind(1)
        return Trace(
            torch.stack([red - green, green - red, blue - green, torch.minimum(red, green) - blue + 0.1], 1), red
        )


@pytest.mark.slow
@pytest.mark.parametrize(("weight", "low", "high"), [(1.5, 0.8, 1.0), (0.0, 0.0, 0.5)])
def test_the_labels_alone_teach_a_generator_classes(weight, low, high):
    """Card, section 8, on squares of four hues: it makes the class it is asked for, and only where classes count."""
    images, labels = squares(400, seeds.generator("squares"))
    shown = Images((images * 255).to(torch.uint8), labels, torch.arange(400), list("abcd"))
    with seeds.isolated("gan"):
        prior = LoktGan(
            classes=4, channels=3, size=32, latent_size=16, width=4, steps=1000, batch_size=16, warmup=100,
            learning_rate=1e-3, class_weight=weight,
        )  # fmt: skip
    for _ in prior.fit(shown, seed=0, oracle=Oracle(Hues(), "labels")):
        pass
    wanted = torch.arange(4).repeat(50)
    with torch.no_grad():
        made = prior.decode(prior.of_classes(prior.sample(200, seeds.generator("probe")), wanted)).clamp(0, 1)
    right = (Hues()(made).logits.argmax(1) == wanted).float().mean()
    assert low <= right <= high


# the students ----------------------------------------------------------------------------------------------------


def learning(**changes):
    network = functools.partial(Student, classes=4, channels=1, size=16)
    options = {"steps": 12, "batch_size": 32, "unit": 5, "optimizer": functools.partial(torch.optim.SGD, lr=0.05)}
    return Learning(network=network, **{**options, **changes})


def students(**changes):
    options = {
        "each": 50,
        "augmentation": Augmentation(flip=0.0),
        "students": {"one": learning(), "two": learning(steps=7)},
    }
    return Labelled(**{**options, **changes})


def attack_of(**changes):
    parts = {
        "init": Random(candidates=4),
        "objective": MaxMargin(),
        "select": Everything(),
        "access": "labels",
        "search": Gradient(optimizer=functools.partial(torch.optim.Adam, lr=0.05), steps=5),
        "surrogate": students(),
    }
    return SearchAttack(**{**parts, **changes})


def prepare(attack, state=None, stop=None, access="labels"):
    """The state after `stop` yields (None: all), what it cost, and how often it yielded."""
    oracle, done, work = Oracle(Quarters(), access), 0, seeds.generator("prepare")
    for done, (_, _, give) in enumerate(attack.prepare(PRIOR, oracle, None, work, state), start=1):  # noqa: B007
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return state, oracle.shared_bill, done


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


whole = functools.cache(lambda: prepare(attack_of())[0])
YIELDS = 2 + 3 + 2  # seven batches asked, twelve and seven steps, in units of five


def test_each_class_is_asked_about_as_often_and_once_for_all_students():
    state, bill, yields = prepare(attack_of())
    assert bill == 4 * 50 == len(state["surrogate.asked"]) and state["surrogate.asked"].dtype == torch.int64
    assert yields == YIELDS and {name.split(".")[1] for name in state} == {"asked", "one", "two"}


def test_a_prior_that_knows_classes_is_asked_for_each():
    prior = gan().eval()
    questions = samples_of_classes(prior, 4, 6, seeds.generator("questions"))
    latents = prior.of_classes(prior.sample(24, seeds.generator("questions")), torch.arange(4).repeat_interleave(6))
    rows = torch.tensor([0, 5, 23, 7])
    with torch.no_grad():
        assert torch.equal(questions.images(rows), prior.decode(latents[rows]).clamp(0, 1)) and questions.count == 24


@pytest.mark.parametrize("stop", range(1, YIELDS + 1))
def test_killed_and_resumed_it_is_the_same_to_the_bit(stop):
    partly, first, _ = prepare(attack_of(), stop=stop)
    resumed, second, _ = prepare(attack_of(), partly)
    assert equal(resumed, whole()) and first + second == 200


def test_scores_change_nothing():
    """It holds labels alone, whatever may be read."""
    state, bill, _ = prepare(attack_of(access="scores"), access="scores")
    assert equal(state, whole()) and bill == 200


def test_a_search_asks_the_students_together_and_never_the_target():
    asked = Quarters()
    oracle = Oracle(asked, "labels", ids=EVIDENCE.ids.tolist())
    attack, stages = attack_of(), {}
    for found, _ in run_group(attack, whole(), PRIOR, oracle, EVIDENCE, seeds.generator("group")):
        stages[found.stage] = found.detached()
    assert sum(asked.seen) == 0 and oracle.bill == {} and len(stages["selected"]) == 12
    panel = attack.surrogate.oracle(
        {name.removeprefix("surrogate."): value for name, value in whole().items()}, PRIOR, None
    )
    answer = panel(PRIOR.decode(stages["initial"].latents), reads=("logits", "probs", "labels"))
    both = torch.stack([answer.logits, *answer.beside])
    assert both.shape == (2, 12, 4) and not torch.equal(both[0], both[1])
    torch.testing.assert_close(answer.probs, both.softmax(2).mean(0))
    assert torch.equal(answer.labels, answer.probs.argmax(1))


def test_a_panel_answers_what_is_read_and_no_more():
    panel = Panel([Oracle(Quarters(), "whitebox"), Oracle(Quarters(), "whitebox")])
    answer = panel(torch.rand(3, 1, 16, 16), reads=("labels",))
    assert answer.probs is None and answer.logits is None and answer.beside == () and answer.labels.shape == (3,)
    images = torch.rand(3, 1, 16, 16, requires_grad=True)
    panel(images, reads=("logits",)).beside[0].sum().backward()
    assert panel.access is Access.WHITEBOX and images.grad.abs().sum() > 0


def test_a_student_sees_views_of_a_share_of_the_images():
    images = torch.rand(400, 1, 16, 16, generator=DRAWS)

    def changed(**changes):
        shown = students(**changes).shown(images, seeds.generator("shown"))
        return (shown != images).flatten(1).any(1).float().mean().item()

    assert changed(augmented=0.0) == 0 and changed(augmentation=None) == 0
    assert changed(augmented=1.0) > 0.9 and 0.4 < changed(augmented=0.5) < 0.6
    draws = {
        changed(together=True, augmented=0.5),
        students(together=True, augmented=1.0).shown(images, DRAWS).shape[0],
    }
    assert draws <= {0.0, 1.0, 400}, "all of a batch or none"


def test_the_originals_one_view_for_a_batch():
    images = torch.rand(1, 1, 16, 16, generator=DRAWS).expand(8, -1, -1, -1)
    views = {
        together: students(together=together, augmented=1.0).shown(images, seeds.generator("shown"))
        for together in (True, False)
    }
    assert (views[True] == views[True][:1]).all() and not (views[False] == views[False][:1]).all()


def test_a_student_that_is_not_told_its_classes_is_refused():
    class Silent(nn.Module):
        def forward(self, images, taps=()):
            return Trace(images.flatten(1), images.flatten(1))

    attack = attack_of(surrogate=students(students={"one": silent(Silent)}))
    with pytest.raises(Refused, match="attack.surrogate.students.one.network: expected one that is told its classes"):
        prepare(attack)


def test_a_prior_that_completes_one_target_is_refused():
    completing = SimpleNamespace(prior=type("Completing", (ToyFamily,), {"completes": True}))
    with pytest.raises(Refused, match="may be of any target, got Completing, which completes what was observed of one"):
        students().check(completing)
    students().check(SimpleNamespace(prior=ToyFamily))


def silent(network):
    told = learning()
    told.network = network
    return told


# through the plan ------------------------------------------------------------------------------------------------

WORLD = (
    "dataset=toy", "dataset.size=32", "dataset.public_classes=4", "train_on=all", "architecture=mlp",
    "architecture.widths=[8]", "recipe.epochs=1", "evidence.classes=[0,1]", "compute=cpu", "tracking=none",
)  # fmt: skip
GAN = (
    "prior.width=2", "prior.latent_size=6", "prior.steps=6", "prior.unit=2", "prior.batch_size=4", "prior.warmup=2",
)  # fmt: skip
LOKT = (*WORLD, *GAN, "attack.search.steps=2", "attack.init.candidates=2")
SHORT = (
    "attack.surrogate.each=5",
    "attack.surrogate.students.narrow.steps=2",
    "attack.surrogate.students.wide.steps=2",
)


def test_every_user_pays_for_the_gan_and_the_students(store):
    """Two attacks share both, and each is charged; a target costs as much as all."""
    plain = Pipeline(plan_for("attack", *LOKT, *SHORT, "attack=lokt_small", store=store))
    classes = plain.target.artefact.metrics["classes"]
    bills = []
    for more in ((), ("attack.search.steps=3",), ("evidence.classes=[1]",)):
        pipeline = Pipeline(plan_for("attack", *LOKT, *SHORT, "attack=lokt_small", *more, store=store))
        bills.append(pipeline.recovered.provenance["bill"])
    assert {bill["shared_queries"] for bill in bills} == {(6 - 2 - 1) * 4 + 5 * classes}
    assert {bill["queries_per_target_max"] for bill in bills} == {0}
    assert len(plain.store.list("prior")) == len(plain.store.list("prepared")) == 1


def test_labels_are_all_it_can_depend_on(store):
    found = [
        Pipeline(
            plan_for("attack", *LOKT, *SHORT, "attack=lokt_small", f"attack.access={access}", store=store)
        ).recovered
        for access in ("labels", "scores")
    ]
    assert found[0].id != found[1].id
    torch.testing.assert_close(found[0].tensors(), found[1].tensors(), rtol=0, atol=0, equal_nan=True)


def test_the_discriminators_head_costs_nothing_more(store):
    pipeline = Pipeline(plan_for("attack", *LOKT, "attack=lokt_head_small", store=store))
    assert pipeline.recovered.provenance["bill"]["shared_queries"] == (6 - 2 - 1) * 4
    assert not pipeline.store.list("prepared")


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (("attack=lokt_head_small", "prior=gmi_gan_small"), "needs a prior that offers classifier, GmiGan offers"),
        (("attack=lokt_small", "prior=plg_gan_small"), "learned with access=whitebox, more than attack.access=labels"),
        (("attack=lokt_small", "attack/select=confidence"), r"attack.select \(TargetConfidence\) reads probs, which"),
        (("attack=lokt_small", "dataset.size=16"), "expected a size of 32 or 64, got 16"),
    ],
)
def test_what_cannot_work_is_refused_at_composition(words, refusal, store):
    with pytest.raises(Refused, match=refusal):
        plan_for("attack", *WORLD, *words, store=store)


@pytest.mark.parametrize("host", ["gmi_small", "plg_mi_small", "ked_mi_small"])
def test_any_white_box_attack_searches_on_the_students(host, store):
    """The surrogate learned labels alone, so that the attack needs no more of the target."""
    words = (*WORLD, f"attack={host}", "prior=toy", "+attack/surrogate=labelled_small", "attack.access=labels")
    shorter = {
        "gmi_small": ("attack.init.candidates=2", "attack.search.steps=2"),
        "plg_mi_small": ("attack.init.candidates=2", "attack.search.steps=2"),
        "ked_mi_small": ("attack.search.steps=2", "attack.search.draws=2"),
    }[host]
    pipeline = Pipeline(plan_for("attack", *words, *SHORT, *shorter, store=store))
    bill = pipeline.recovered.provenance["bill"]
    assert (
        bill["shared_queries"] == 5 * pipeline.target.artefact.metrics["classes"]
        and bill["queries_per_target_max"] == 0
    )


def test_no_search_without_gradients_needs_a_surrogate_that_has_them():
    assert ClassHead().access is Access.WHITEBOX
    with pytest.raises(Refused, match="access=labels hides"):
        attack_of(surrogate=None)
    assert list(itertools.islice(ClassHead().fit(None, None, None, None, None), 1)) == []
