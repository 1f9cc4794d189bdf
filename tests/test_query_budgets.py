"""The closed forms of what attacks ask (methods card query_budgets.md): one row here for every black-box attack of
conf/attack, at tiny settings; a new one that has none fails. The listing is all that a further attack adds to."""

from dataclasses import dataclass, field

import pytest
import torch
from contract.doubles import KnowingToy
from contract.listing import composed, options, written
from torch import nn

from midefense import seeds
from midefense.attacks.base import run_group
from midefense.oracle import Oracle
from midefense.plan.bind import bind
from midefense.priors.pixels import Pixels
from midefense.priors.toy import ToyFamily
from midefense.types import Access, Evidence, Images, Question, Trace

CLASSES, SIZE = 4, 6
PIXELS = SIZE**2
EVIDENCE = Evidence(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 3]))
PRIORS = {
    "toy": lambda: ToyFamily(channels=1, size=SIZE),
    "pixels": lambda: Pixels(channels=1, size=SIZE, start="noise"),
    "knowing": lambda: KnowingToy(channels=1, size=SIZE),
}


@dataclass(frozen=True)
class Row:
    """What an attack asks under `changes` of its options: of all targets together, and of each. `least`: the number per
    target is a lower bound, as where rejected rounds count. `prior`: the one of `PRIORS` it is tried with."""

    attack: str
    changes: tuple[str, ...] = field(default=())
    shared: int = 0
    each: int = 0
    least: bool = False
    prior: str = "toy"


PUBLIC = Images(
    torch.randint(256, (12, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12) % 3,
    torch.arange(12),
    ["a", "b", "c"],
)
POOL = ("init.size=40", "init.candidates=7", "search.stop=null", "search.generations=5")
WALK = ("init.batch_size=400", "init.draws=400", "search.radius=0.01", "search.patience=null", "search.max_rounds=5")
AGENTS = ("search.episodes=6", "search.hidden=8", "search.batch_size=2")
FACE = ("search.steps=3", "search.stop=null")
STUDENTS = ("attack/surrogate=labelled_small", "surrogate.each=5", "search.steps=2", "init.candidates=3")
IMITATED = (
    "surrogate.students.student.steps=2",
    "surrogate.students.student.network.widths=[4]",
    "init.size=40",
    "init.candidates=3",
    "search.steps=2",
    "select.keep=2",
    "select.repeats=4",
)
PROBES = ("init.size=40", "init.candidates=2", "search.steps=3", "search.directions=5")
LEARNT = ("surrogate.students.narrow.steps=2", "surrogate.students.wide.steps=2")
COARSE = (
    "attack/init=coarse_small",
    "init.embedding.learning.steps=2",
    "init.learning.steps=2",
    "search.generations=4",
)
ROWS = (
    # MIRROR: the pool, then a child for all of a population but its fittest, who is known; the authors ask again
    Row("mirror_blackbox", POOL, shared=40, each=5 * (7 - 1)),
    Row("mirror_blackbox", (*POOL, "search.rescore=true"), shared=40, each=5 * 7),
    Row("mirror_blackbox", (*POOL, "init.candidates=1"), shared=40, each=0),
    Row("mirror_blackbox_small", POOL, shared=40, each=5 * (7 - 1)),
    Row("mirror_blackbox_toolbox", (*POOL, "search.keep=2", "select.keep=2"), shared=40, each=5 * 7),
    # MI-Face by numeric gradients: central differences of d pixels, forward ones, and along m random directions
    Row("mi_face_numeric", FACE, each=3 * (2 * PIXELS + 1), prior="pixels"),
    Row("mi_face_numeric", (*FACE, "search.differences=forward"), each=3 * (PIXELS + 1), prior="pixels"),
    Row("mi_face_numeric", (*FACE, "init.candidates=2"), each=2 * 3 * (2 * PIXELS + 1), prior="pixels"),
    Row("mi_face_numeric_small", (*FACE, "search.directions=5"), each=3 * (2 * 5 + 1), prior="pixels"),
    # those who know the defense: MIRROR again, probes from the best of a pool and what is chosen from, public
    # images once for a surrogate and views of what it found
    Row("rolss_aware", POOL, shared=40, each=5 * (7 - 1)),
    Row("rolss_aware_small", POOL, shared=40, each=5 * (7 - 1)),
    Row("output_aware", PROBES, shared=40, each=2 * 3 * (2 * 5 + 1) + 2),
    Row("output_aware_small", PROBES, shared=40, each=2 * 3 * (2 * 5 + 1) + 2),
    Row("surrogate_aware", IMITATED, shared=len(PUBLIC), each=3 * 4),
    Row("surrogate_aware_small", IMITATED, shared=len(PUBLIC), each=3 * 4),
    # BREP-MI: whole batches until every label is met, then 32 points and a move per round, accepted or not
    Row("brep_mi", WALK, shared=400, each=5 * 33),
    Row("brep_mi", (*WALK, "init.candidates=3", "search.points=8"), shared=400, each=3 * 5 * 9),
    Row(
        "brep_mi",
        (*WALK[:3], "search.growth=1", "search.grow_above=-1", "search.max_rounds=7"),
        shared=400,
        each=7 * 33,
    ),
    Row("brep_mi_paper", WALK, shared=400, each=5 * 33),
    Row("brep_mi_small", WALK, shared=400, each=5 * 33),
    Row("brep_mi_untargeted", WALK, shared=400, each=5 * 33),
    Row("brep_mi_toolbox", (*WALK, "init.candidates=2"), shared=400, each=2 * 5 * 32),
    # RLB-MI: an image per step and a test per episode; another for the action where it leads elsewhere
    Row("rlb_mi", AGENTS, each=6 * 2),
    Row("rlb_mi", (*AGENTS, "search.diversity=0.5"), each=6 * 3),
    Row("rlb_mi", (*AGENTS, "search.length=3", "init.candidates=2"), each=2 * 6 * 4),
    Row("rlb_mi", (*AGENTS, "search.tests=false"), each=6),
    Row("rlb_mi_quick", AGENTS, each=6 * 2),
    Row("rlb_mi_small", AGENTS, each=6 * 2),
    Row("rlb_mi_toolbox", AGENTS, each=6 * 2),
    # LOKT: an image per class and label for the students, once for all of them; what its GAN asks is in test_lokt.py
    Row("lokt", (*STUDENTS, *LEARNT), shared=5 * CLASSES),
    Row("lokt_single", (*STUDENTS, *LEARNT), shared=5 * CLASSES),
    Row("lokt_small", (*STUDENTS, *LEARNT, "surrogate.each=7"), shared=7 * CLASSES),
    Row("lokt_head", ("search.steps=2", "init.candidates=3"), prior="knowing"),
    Row("lokt_head_small", ("search.steps=2", "init.candidates=3"), prior="knowing"),
    # C2FMI: every public image once, then starts, fillers and children; the authors ask about parents again
    Row("c2f_mi", COARSE, shared=len(PUBLIC), each=16 + 22 + 4 * 32),
    Row("c2f_mi_small", COARSE, shared=len(PUBLIC), each=16 + 22 + 4 * 32),
    Row("c2f_mi_truncated", (*COARSE, "init.top=3", "objective.top=3"), shared=len(PUBLIC), each=16 + 16 + 4 * 32),
    Row("c2f_mi_toolbox", (*COARSE, "search.population=20"), shared=len(PUBLIC), each=16 + 10 + 4 * 20),
)


class Target(nn.Module):
    """A linear classifier with drawn weights; `sure` multiplies its logits, so that probabilities become 0 and 1."""

    def __init__(self, sure=1.0):
        super().__init__()
        with seeds.isolated("budgets"):
            self.head = nn.Linear(PIXELS, CLASSES)
        self.sure = sure

    def forward(self, images, taps=()):
        flat = images.flatten(1)
        return Trace(self.sure * self.head(flat), flat)


def attack_of(row):
    words = [change if change.startswith("attack/") else f"attack.{change}" for change in row.changes]
    node = bind(composed("attack", f"attack={row.attack}", *words)[0]["attack"], "attack", beside_dataset=True)
    return node.given(classes=CLASSES, channels=1, size=SIZE).build()


def attacked(row, target=None, budget=None, access=None):
    """The shared bill, each target's, the stages by name, and why the attack stopped early."""
    attack, prior = attack_of(row), PRIORS[row.prior]().requires_grad_(False)
    target, state = target or Target(), {}
    oracle = Oracle(target, access or attack.access)
    asked = {"question": Question(EVIDENCE.labels, CLASSES)} if attack.asks_question else {}
    if attack.prepares:
        for _, _, give in attack.prepare(prior, oracle, PUBLIC, seeds.generator("prepare"), None, **asked):
            state = give()
    shared = oracle.shared_bill
    oracle = Oracle(target, access or attack.access, budget, ids=EVIDENCE.ids.tolist())
    stages, why = {}, ""
    for found, why in run_group(attack, state, prior, oracle, EVIDENCE, seeds.generator("recover")):  # noqa: B007
        stages[found.stage] = found.detached()
    bill = [oracle.bill.get(int(one), 0) for one in EVIDENCE.ids]
    return shared + oracle.shared_bill, bill, stages, why


def name_of(row):
    return " ".join((row.attack, *row.changes))


def test_every_black_box_attack_has_a_row():
    access = {name: written("attack", name, "access") for name in options("attack")}
    hidden = {name for name, level in access.items() if Access(level) in (Access.SCORES, Access.LABELS)}
    per_picture = {name for name in hidden if name.startswith("secret_gen")}  # what a picture costs: test_secret_gen.py
    assert hidden - per_picture == {row.attack for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_an_attack_asks_what_its_closed_form_says(row):
    shared, bill, stages, why = attacked(row)
    assert shared == row.shared and why == ""
    started = set(stages["initial"].evidence.tolist())  # a label that no draw was given costs its target nothing
    assert started and all(bill[target] == 0 for target in set(range(len(bill))) - started)
    assert all(bill[one] >= row.each if row.least else bill[one] == row.each for one in started), bill
    assert stages["selected"].latents.isfinite().all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.each], ids=name_of)
def test_a_budget_ends_it_before_an_answer_too_many_and_leaves_the_best_so_far(row):
    budget = max(1, 2 * row.each // 3)
    _, bill, stages, why = attacked(row, budget=budget)
    assert max(bill) <= budget and f"the budget is {budget}" in why
    assert len(stages["optimised"]) >= 1


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_probabilities_of_nought_and_ties_are_survived(row):
    _, _, stages, _ = attacked(row, target=Target(sure=1e5))
    assert stages["selected"].latents.isfinite().all() and stages["selected"].loss.isfinite().all()
    _, _, stages, _ = attacked(row, target=Target(sure=0.0))
    assert stages["selected"].latents.isfinite().all()


@pytest.mark.parametrize("row", [row for row in ROWS], ids=name_of)
def test_more_access_changes_no_bit(row):
    """An attack that is made for labels or scores cannot depend on more."""
    own, more = attacked(row), attacked(row, access="whitebox")
    assert own[:2] == more[:2] and own[2].keys() == more[2].keys()
    assert all(torch.equal(own[2][stage].latents, more[2][stage].latents) for stage in own[2])
