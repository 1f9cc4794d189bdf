"""RLB-MI: the reward's known answers, what an episode costs, how agents learn alone and among others, and the habits of
the authors' code as options."""

import functools
import math

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.attacks.agents import Agents, Critic, Experience, Memory, distinct
from midefense.attacks.base import SearchAttack, run_group
from midefense.attacks.init import Random
from midefense.attacks.objectives import CrossEntropy
from midefense.attacks.part import Part
from midefense.attacks.problem import Look
from midefense.attacks.scores import Reward, WrongLabel
from midefense.attacks.search.policy import SoftActorCritic
from midefense.attacks.select import LowestLoss
from midefense.attacks.views import Flip
from midefense.oracle import Oracle
from midefense.priors.base import Prior
from midefense.types import Answer, Evidence, Refused, Trace

WIDTH = 8
ADAM = functools.partial(torch.optim.Adam, lr=5e-4)


def rng(name="x"):
    return seeds.generator("rlb_mi", name)


class Itself(Prior):
    """Pictures [B, 8, 1, 1] are the numbers of the noise, of which a clip leaves those of actions."""

    offers = frozenset({"sample", "normal"})
    normal_width = WIDTH

    def __init__(self):
        super().__init__(channels=WIDTH, size=1)

    def sample(self, count, rng):
        return torch.randn(count, WIDTH, generator=rng)

    def of_normal(self, noise):
        return noise

    def decode(self, latents):
        return (latents / 2 + 0.5)[..., None, None]


class Prototypes(nn.Module):
    """Logits: minus the squared distance to ten prototypes, over a half (card, section 8)."""

    def __init__(self):
        super().__init__()
        self.centres = 1.6 * torch.rand(10, WIDTH, generator=rng("prototypes")) - 0.8
        self.asked = 0

    def forward(self, images, taps=()):
        points = 2 * (images.flatten(1) - 0.5)
        return Trace(-torch.cdist(points, self.centres).square() / 0.5, points)


def attack_of(objective=None, candidates=1, **options):
    options = {"optimizer": ADAM, "episodes": 20, "hidden": 16, "batch_size": 8, **options}
    return SearchAttack(
        init=Random(candidates=candidates), objective=objective or Reward(), search=SoftActorCritic(**options),
        select=LowestLoss(keep=1), access="scores",
    )  # fmt: skip


def attacked(attack, targets=(0, 3, 9), model=None, oracle=None, name="x"):
    """The last of each stage, and the oracle."""
    oracle = oracle or Oracle(model or Prototypes(), "scores")
    evidence, stages = Evidence(torch.tensor(targets), torch.tensor(targets)), {}
    for found, _ in run_group(attack, {}, Itself(), oracle, evidence, rng(name)):
        stages[found.stage] = found.detached()
    return stages, oracle


def agents_of(count=2, width=WIDTH, hidden=16, lr=5e-4, **options):
    options = {"discount": 0.99, "soft_update": 0.01, "twins": False, "episodic": False, **options}
    draws = [rng(f"agent {number}") for number in range(count)]
    optimizer = functools.partial(torch.optim.Adam, lr=lr)
    return Agents(width=width, hidden=hidden, draws=draws, optimizer=optimizer, device=torch.device("cpu"), **options)


def look_of(probs, labels):
    pictures = torch.zeros(len(probs), 1, 1, 1)
    answer = Answer(probs=torch.tensor(probs))
    return Look(pictures, pictures, pictures, pictures, answer, torch.tensor(labels), Itself())


# the reward ------------------------------------------------------------------------------------------------------


def reward(probs, label, least=1e-7):
    """Of a step with one image: the objective's, and the search's own term."""
    look = look_of([probs], [label])
    own = 2.0 * look.confidence().clamp_min(least).log()
    return float(own - Reward(least=least)(look))


@pytest.mark.parametrize(
    ("probs", "label", "expected"),
    [
        ((0.7, 0.2, 0.1), 0, 4 * math.log(0.7) + 8 * math.log(0.5)),  # card: -6.97
        ((0.7, 0.2, 0.1), 1, 4 * math.log(0.2) + 8 * math.log(1e-7)),  # card: -135.4
        ((0.1, 0.2, 0.7), 2, 4 * math.log(0.7) + 8 * math.log(0.5)),
        ((0.5, 0.5, 0.0), 0, 4 * math.log(0.5) + 8 * math.log(1e-7)),
        ((1.0, 0.0, 0.0), 0, 0.0),
        ((1.0, 0.0, 0.0), 2, 4 * math.log(1e-7) + 8 * math.log(1e-7)),
    ],
)
def test_rewards_of_known_answers(probs, label, expected):
    assert reward(probs, label) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_published_reward_has_no_floor_under_the_probability():
    assert reward((1.0, 0.0), 1, least=0.0) == -math.inf
    published = Reward(margin=3).as_published()
    assert (published.least, published.margin, published.least_margin) == (0.0, 3, 1e-7)


def test_the_search_is_paid_the_reward():
    """A step's pay, with the image of the action beside that of where it leads."""
    for diversity in (0.0, 0.4):
        attack, model = attack_of(diversity=diversity), Prototypes()
        paid = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Memory, "add", lambda self, *given, done, paid=paid: paid.append([v.clone() for v in given]))
            attacked(attack, model=model)
        for states, actions, rewards, after in paid:
            torch.testing.assert_close(after, diversity * states + (1 - diversity) * actions)
            assert torch.equal(after, actions) == (diversity == 0), "to the bit"
            probs = [model(Itself().decode(points)).logits.softmax(1) for points in (after, actions)]
            for row, label in enumerate((0, 3, 9)):
                here, there = (float(each[row, label]) for each in probs)
                margin = here - max(float(p) for k, p in enumerate(probs[0][row]) if k != label)
                sure, other, gap = (math.log(max(1e-7, each)) for each in (here, there, margin))
                expected = 2 * sure + 2 * other + 8 * gap
                assert float(rewards[row]) == pytest.approx(expected, rel=1e-4)


# what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "each"),
    [
        ({}, 2),
        ({"tests": False}, 1),
        ({"diversity": 0.5}, 3),
        ({"length": 3}, 4),
        ({"length": 2, "diversity": 0.5}, 5),
        ({"diversity": 0.5, "action_weight": 0.0}, 2),
    ],
)
def test_what_an_episode_costs(options, each):
    """Card: 2 images where both of a reward are one (80,000 for 40,000 episodes), 3 otherwise, 1 without tests."""
    _, oracle = attacked(attack_of(**options))
    assert oracle.bill == dict.fromkeys((0, 3, 9), 20 * each) and oracle.shared_bill == 0


def test_the_search_asks_for_what_it_is_paid_by_whatever_the_objective_reads():
    stages, oracle = attacked(attack_of(WrongLabel(), episodes=3))
    assert (stages["optimised"].loss < 1).all() and oracle.bill == dict.fromkeys((0, 3, 9), 6)


def test_every_question_is_asked_under_views_of_its_own():
    seen = []

    class Watched(Flip):
        def __call__(self, images, draws):
            seen.append(draws.clone())
            return super().__call__(images, draws)

    attack = attack_of(episodes=4, diversity=0.5)
    attack.views = Watched(p=0.0)
    attacked(attack)
    assert len(seen) == 12 and len(torch.cat(seen).unique()) == 36


def test_what_is_found_is_the_surest_test_and_the_newest_of_equals():
    class Always(nn.Module):
        def forward(self, images, taps=()):
            return Trace(torch.zeros(len(images), 10), images.flatten(1))

    attack = attack_of()
    oracle = Oracle(Always(), "scores")
    steps = [
        found.detached() for found in attack.recover({}, Itself(), oracle, Evidence(*[torch.tensor([1])] * 2), rng())
    ]
    tests = [found.latents for found in steps if found.stage == "optimised"]
    assert len({tuple(latents[0].tolist()) for latents in tests}) == 20, "among equals the newest"
    model = Prototypes()
    stages, _ = attacked(attack_of(episodes=60), model=model)
    sure = model(Itself().decode(stages["selected"].latents)).logits.softmax(1)[
        torch.arange(3), torch.tensor([0, 3, 9])
    ]
    torch.testing.assert_close(stages["selected"].loss, 1 - sure, atol=1e-5, rtol=0)


# how agents learn ------------------------------------------------------------------------------------------------


def experience(count, size=8, episodic=False, name="batch"):
    draws = rng(name)
    states, actions, after = (torch.randn(count, size, WIDTH, generator=draws).tanh() for _ in range(3))
    rewards = torch.randn(count, size, generator=draws)
    if not episodic:
        return Experience(states, actions, rewards)
    return Experience(states, actions, rewards, after, (torch.rand(count, size, generator=draws) < 0.5).float())


def weights(agents, row):
    networks = [agents.actor, *agents.critics, *agents.targets]
    return [weight[row].detach() for network in networks for weight in network.parameters()]


@pytest.mark.parametrize("episodic", [False, True])
def test_agents_in_one_product_are_those_one_after_another(episodic):
    together = agents_of(3, twins=True, episodic=episodic)
    seen, noise = experience(3, episodic=episodic), torch.randn(2, 3, 8, WIDTH, generator=rng("noise"))
    for _ in range(5):
        together.learn(seen, noise[0] if episodic else None, noise[1])
    for row in range(3):
        alone = Agents(
            width=WIDTH, hidden=16, draws=[rng(f"agent {row}")], optimizer=ADAM, discount=0.99, soft_update=0.01,
            twins=True, episodic=episodic, device=torch.device("cpu"),
        )  # fmt: skip
        mine = Experience(*(None if part is None else part[row : row + 1] for part in vars(seen).values()))
        for _ in range(5):
            alone.learn(mine, noise[0, row : row + 1] if episodic else None, noise[1, row : row + 1])
        for left, right in zip(weights(alone, 0), weights(together, row), strict=True):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(alone.log_temperature[0], together.log_temperature[row])


class Dimmed(Part):
    """A view that takes a share of the light, drawn per image."""

    columns = 1

    def __call__(self, images, draws):
        return images * (1 - draws.view(-1, 1, 1, 1) / 2)


def test_what_views_draw_is_of_the_group_whatever_fits_in_memory():
    """As in every search: a group is fixed and has a seed, from which views draw for all of it before it is cut."""

    def found(targets, chunk):
        attack = attack_of(episodes=12)
        attack.views, attack.chunk = Dimmed(), chunk
        return attacked(attack, targets)[0]["selected"]

    whole, cut, alone = found((0, 3, 9), None), found((0, 3, 9), 2), found((9,), None)
    torch.testing.assert_close(cut.latents, whole.latents, atol=1e-5, rtol=0)
    assert not torch.allclose(alone.latents[0], whole.latents[2], atol=1e-4), "it would have seen other views"


def test_a_target_finds_alone_what_it_finds_among_others():
    among, bills = attacked(attack_of(episodes=40, candidates=2))
    for row, target in enumerate((0, 3, 9)):
        alone, oracle = attacked(attack_of(episodes=40, candidates=2), targets=(target,))
        torch.testing.assert_close(alone["selected"].latents[0], among["selected"].latents[row], atol=1e-4, rtol=0)
        assert oracle.bill[target] == bills.bill[target]


def test_one_step_of_an_episode_needs_no_target_no_twin_and_nothing_that_comes_after():
    """`done` takes away all that is believed of the rest: the same bits with it all computed."""
    lean, whole = agents_of(), agents_of(twins=False, episodic=True)
    seen, noise = experience(2, episodic=True), torch.randn(2, 2, 8, WIDTH, generator=rng("noise"))
    seen.done.fill_(1)
    for _ in range(10):
        lean.learn(Experience(seen.states, seen.actions, seen.rewards), None, noise[1])
        whole.learn(seen, noise[0], noise[1])
    assert len(lean.targets) == 0 and len(lean.critics) == len(agents_of(twins=True).critics) == 1
    for left, right in zip(lean.actor.parameters(), whole.actor.parameters(), strict=True):
        assert torch.equal(left, right)


def test_twins_differ_and_the_lower_is_believed():
    agents = agents_of(twins=True, episodic=True)
    first, second = agents.critics
    assert not torch.equal(first.first.weight, second.first.weight)
    for target, critic in zip(agents.targets, agents.critics, strict=True):
        assert torch.equal(target.first.weight, critic.first.weight), "they begin as their critics"
    seen, noise = experience(2, episodic=True), torch.randn(2, 8, WIDTH, generator=rng("noise"))
    actions, density = agents.actor.act_with_density(seen.next_states, noise)
    believed = [target(seen.next_states, actions) for target in agents.targets]
    expected = seen.rewards + 0.99 * (1 - seen.done) * (torch.minimum(*believed) - density)
    torch.testing.assert_close(agents._worth(seen, noise), expected)


def test_the_temperature_anneals_by_the_rate_whatever_the_policy_does():
    """Card: log a_e falls by 5e-4 per update, as the density is a mean over dimensions and the entropy is -width."""
    agents = agents_of(width=100)
    draws = rng("temperature")
    states, actions = (torch.randn(2, 8, 100, generator=draws).tanh() for _ in range(2))
    for _ in range(60):
        agents.learn(Experience(states, actions, torch.ones(2, 8)), None, torch.randn(2, 8, 100, generator=draws))
    torch.testing.assert_close(agents.log_temperature.detach(), torch.full((2,), -0.03), atol=1e-3, rtol=0)


def test_shared_noise_moves_along_one_line_and_the_other_does_not():
    """Card: atanh(a) = mu + e std; over samples the second singular value is 1e-7 of the first."""
    agents, states = agents_of(1), torch.randn(1, WIDTH, generator=rng("state"))
    ratios = {}
    for entries in (1, WIDTH):
        draws = rng("noise")
        noises = torch.randn(40, 1, entries, generator=draws)
        found = torch.stack([agents.act(states, noise)[0] for noise in noises]).double().atanh()
        values = torch.linalg.svdvals(found - found.mean(0))
        ratios[entries] = float(values[1] / values[0])
    assert ratios[1] < 1e-4 < 0.1 < ratios[WIDTH]


def test_weights_are_drawn_as_the_authors_draw_them():
    critic, actor = Critic(WIDTH, 100, [rng("critic")]), agents_of(1, hidden=100).actor
    bounds = {"first": 1 / math.sqrt(100), "second": 1 / math.sqrt(100), "value": 3e-3}
    for name, bound in bounds.items():
        largest = float(getattr(critic, name).weight.detach().abs().max())
        assert 0.9 * bound < largest <= bound
    assert 0.9 / math.sqrt(WIDTH) < float(actor.first.weight.detach().abs().max()) <= 1 / math.sqrt(WIDTH)


@pytest.mark.parametrize("among", [9, 40, 200])
def test_a_batch_holds_no_step_twice_and_every_step_as_often(among):
    counts = torch.zeros(among)
    draws = rng("distinct")
    rounds = 1000
    for _ in range(rounds):
        rows = distinct(8, among, draws)
        assert len(rows) == 8 == len(rows.unique()) and 0 <= int(rows.min()) <= int(rows.max()) < among
        counts[rows] += 1
    expected = rounds * 8 / among
    chi = float(((counts - expected).square() / expected).sum()) / (among - 1)
    assert chi < 2, "without replacement it lies below 1 where steps are drawn alike"


def test_memory_is_a_ring_of_the_newest():
    memory = Memory(1, 3, 2, True, torch.device("cpu"))
    for step in range(5):
        point = torch.full((1, 2), float(step))
        memory.add(point, point + 10, torch.tensor([float(step)]), point + 20, done=step % 2 == 0)
    assert len(memory) == 3
    kept = memory.take(torch.arange(3)[None])
    assert sorted(kept.rewards[0].tolist()) == [2, 3, 4]
    assert torch.equal(kept.actions[..., 0], kept.rewards + 10) and torch.equal(
        kept.next_states[..., 0], kept.rewards + 20
    )
    assert torch.equal(kept.done, (kept.rewards % 2 == 0).float())


# the whole -------------------------------------------------------------------------------------------------------


def late_confidence(attack, seed):
    """Mean p_y of all that is asked in the last tenth of the episodes."""
    seen = []
    evidence = Evidence(*[torch.arange(10)] * 2)
    ask = type(attack.search).school

    def school(self, problem, owners):
        made = ask(self, problem, owners)
        asked = made._asked
        made._asked = lambda noise: seen.append(asked(noise)) or seen[-1]
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SoftActorCritic, "school", school)
        for _ in attack.recover({}, Itself(), Oracle(Prototypes(), "scores"), evidence, rng(f"seed {seed}")):
            pass
    return float(torch.stack([sure for _, _, sure in seen[-len(seen) // 10 :]]).mean())


class Nothing(Reward):
    """The same pay for everything."""

    def __call__(self, look):
        return torch.zeros(len(look.labels))


@pytest.mark.slow
def test_agents_learn_where_the_target_is_sure():
    """Card: mean p_y at the end .54 to .998 with shared noise, .79 to .999 with noise per entry, below .34 unpaid."""
    options = {"episodes": 1000, "hidden": 64, "batch_size": 64}
    each = late_confidence(attack_of(**options), 0)
    shared = late_confidence(attack_of(**options, shared_noise=True), 0)
    unpaid = late_confidence(attack_of(Nothing(), **options, action_weight=0.0), 0)
    assert each > 0.7 and shared > 0.4 and unpaid < 0.3, (each, shared, unpaid)


def test_paid_agents_get_surer_soon():
    options = {
        "episodes": 250,
        "hidden": 32,
        "batch_size": 32,
        "optimizer": functools.partial(torch.optim.Adam, lr=3e-3),
    }
    paid = late_confidence(attack_of(**options), 0)
    unpaid = late_confidence(attack_of(Nothing(), **options, action_weight=0.0), 0)
    assert paid > 2 * unpaid, (paid, unpaid)


def test_an_oracle_that_says_nought_breaks_nothing():
    class Rounded(Prototypes):
        def forward(self, images, taps=()):
            return Trace((50 * super().forward(images).logits).clamp(-1e4), images.flatten(1))

    stages, _ = attacked(attack_of(episodes=30), model=Rounded())
    assert all(found.latents.isfinite().all() for found in stages.values())


def test_legacy_is_the_authors_code(store):
    plan = plan_for("attack", "dataset=digits", "architecture=cnn", "attack=rlb_mi", "attack.legacy=true", store=store)
    assert plan.attack.build().search.shared_noise
    search = SoftActorCritic(optimizer=ADAM, episodes=7)
    published = search.as_published()
    changed = {name for name, value in vars(search).items() if getattr(published, name) != value}
    assert changed == {"shared_noise", "twins", "least"} and published.shared_noise and not published.twins


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["prior=pixels"], "needs a prior that offers normal"),
        (["prior=plg_gan_small"], "needs a prior that offers normal|plg_gan_small"),
        (["attack.access=labels"], "access=labels hides"),
        (["attack/objective=cross_entropy"], "access=scores hides"),
    ],
)
def test_what_does_not_fit_is_refused_when_it_is_composed(overrides, reason, store):
    with pytest.raises(Refused, match=reason):
        plan_for("attack", "dataset=digits", "architecture=cnn", "attack=rlb_mi_small", *overrides, store=store)


def test_the_oracle_sees_no_gradients():
    assert not any("gradient" in part.reads for part in attack_of().parts.values())
    with pytest.raises(Refused, match="access=scores hides"):
        attack_of(CrossEntropy())
