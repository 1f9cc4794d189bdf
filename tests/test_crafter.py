"""Crafter's parts against known answers: the implicit gradient in closed form, features that do not depend on their
neighbours, the order of strengths on a toy, and what its generator and amortiser are in the store."""

import pytest
import torch
from conftest import plan_for
from torch import nn

from midefense import seeds
from midefense.defenses import crafting
from midefense.defenses.amortising import Amortisation
from midefense.defenses.crafter import Crafter, CrafterZ
from midefense.defenses.crafting import Critic, FictitiousAttacker, World
from midefense.defenses.implicit import HESSIANS, Implicit, Linearised, krylov, neumann, pseudo_inverse
from midefense.pipeline.pipeline import Pipeline
from midefense.types import Refused


def matrix(rows, columns, seed="matrix"):
    return torch.randn(rows, columns, generator=seeds.generator(seed, rows, columns), dtype=torch.float64)


class Linear:
    """G(z) = G z as pixels [B, 12, 1, 1] and a critic of its own, tanh(w x)."""

    def __init__(self, latents=3, sigmoid=False):
        self.generator, self.sigmoid, self.latents = matrix(12, latents), sigmoid, latents
        self.device = torch.device("cpu")

    def sample(self, count, rng):
        return torch.randn(count, self.latents, generator=rng, dtype=torch.float64)

    def draw(self, latents):
        pixels = latents @ self.generator.T
        return (pixels.sigmoid() if self.sigmoid else pixels)[:, :, None, None]

    def frame(self, drawn):
        return drawn

    def realism(self, drawn):
        return torch.tanh(drawn.flatten(1) @ matrix(12, 1)[:, 0])

    def new_critic(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1), nn.Flatten(0)).double()


ENCODER = matrix(10, 12)


def edge(images):
    return images.flatten(1) @ ENCODER.T


def world(prior, form="per_image"):
    return World(edge, prior, lambda features: features.new_zeros(len(features), prior.latents), form)


def exactly(prior, features):
    """Where a search with a linear edge and generator ends."""
    return features @ torch.linalg.pinv(ENCODER @ prior.generator).T


def score(images):
    return torch.tanh(images.flatten(1) @ matrix(12, 1, "critic")[:, 0] / 5)


class Score(nn.Module):
    def forward(self, images):
        return score(images)


CURVED = {"terms": 400, "alpha": 1e-3}  # the largest curvature is 1,900, so that the series converges


@pytest.mark.parametrize("hessian", HESSIANS)
@pytest.mark.parametrize(
    ("solver", "error"),
    [
        ({"products": None, **CURVED}, 1e-9),
        ({"products": 3, **CURVED}, 1e-9),
        ({"products": 20, **CURVED}, 1e-9),
        ({"solver": "cg", "products": 3}, 1e-9),
        pytest.param({"products": None, "terms": 10, "alpha": 1e-3}, 1, id="ten terms are too few"),
    ],
)
def test_the_gradient_of_a_linear_world_is_the_pseudo_inverse(hessian, solver, error):
    prior, features = Linear(), matrix(5, 10, "features").requires_grad_()
    loss = score(prior.draw(exactly(prior, features))).sum()
    (known,) = torch.autograd.grad(loss, features)
    latents = exactly(prior, features).detach().requires_grad_()
    (slope,) = torch.autograd.grad(score(prior.draw(latents)).sum(), latents)
    weight = 950 / float(torch.linalg.matrix_norm(ENCODER @ prior.generator, 2) ** 2)
    found, unsettled = Implicit(hessian=hessian, **solver).gradient(
        world(prior).view, latents, features.detach(), weight, slope
    )
    missed = float((found - known).abs().max() / known.abs().max())
    assert missed < error and (error < 1 or missed > 1e-2)
    assert float((-found - known).abs().max() / known.abs().max()) > 1, "of the wrong sign it is another"
    assert unsettled.shape == (5,)


def test_the_exact_hessian_is_that_of_a_curved_generator_and_gauss_newton_is_not():
    prior = Linear(sigmoid=True)
    features = edge(prior.draw(matrix(4, 3, "where"))) + 0.3 * matrix(4, 10, "off")
    latents, weight = matrix(4, 3, "latents"), 7.0
    graph = Linearised(world(prior).view, latents, features, weight)

    def residual(row, index):
        return weight * (world(prior).view(row[None]) - features[index]).square().sum()

    vector, known = matrix(4, 3, "vector"), []
    for index in range(4):
        curved = torch.autograd.functional.hessian(lambda row, i=index: residual(row, i), latents[index])
        known.append(curved @ vector[index])
    torch.testing.assert_close(graph.exact(vector), torch.stack(known))
    assert not torch.allclose(graph.gauss_newton(vector), torch.stack(known), rtol=0.05)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: world(prior).view(row[None])[0]))(latents)
    squared = 2 * weight * torch.einsum("nfd,nfe,ne->nd", jacobian, jacobian, vector)
    torch.testing.assert_close(graph.gauss_newton(vector), squared)


@pytest.mark.parametrize("size", [2, 6, 9, 30])
def test_a_krylov_space_sums_the_series_before_it_is_exhausted_and_after(size):
    root = matrix(9, 9).div(3).expand(4, 9, 9) * torch.tensor([1.0, 0.3, 2.0, 0.0], dtype=torch.float64)[:, None, None]
    curved = torch.einsum("nij,nkj->nik", root, root)
    vector = matrix(4, 9, "vector")

    def product(vector):
        return torch.einsum("nij,nj->ni", curved, vector)

    implicit = Implicit(terms=50, alpha=0.02)
    found = krylov(product, vector, size, implicit._series)
    known = neumann(product, vector, 50, 0.02)
    assert torch.allclose(found, known, rtol=1e-8, atol=1e-10) == (size >= 9)
    torch.testing.assert_close(found[3], 51 * 0.02 * vector[3])  # no curvature: every term is the vector


def test_no_curvature_has_no_inverse():
    values = torch.tensor([[4.0, 1e-9, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert pseudo_inverse(values).tolist() == [[0.25, 0, 0, 0], [0, 0, 0, 0]]


def crafter(kind=Crafter, **changes):
    critic = changes.pop("critic", Critic(steps=3, rows=4))
    options = {"attacker": FictitiousAttacker(steps=6), "critic": critic, "steps": 4, "beta": 1.0, "rate": 0.05}
    options |= {"implicit": Implicit(**CURVED, products=4)} if kind is Crafter else {}
    return kind(prior=Linear, amortiser=None, **{**options, **changes})


def crafted(defense, rows=slice(0, 8), prior=None):
    prior = prior or Linear(sigmoid=True)
    images = torch.rand(8, 12, 1, 1, generator=seeds.generator("images"), dtype=torch.float64)
    defense.equip(edge, prior, {})
    return defense.release(edge, images[rows], torch.arange(8)[rows], seeds.generator("release"))


@pytest.mark.parametrize("kind", [Crafter, CrafterZ])
def test_images_searched_for_together_or_apart_are_the_same(kind):
    whole = crafted(crafter(kind))
    for chunk in (4, 3, 1):
        torch.testing.assert_close(crafted(crafter(kind, chunk=chunk)), whole, rtol=0, atol=1e-9)
    assert torch.equal(crafted(crafter(kind)), whole)


@pytest.mark.parametrize("kind", [Crafter, CrafterZ])
def test_under_a_critic_that_stands_still_groups_may_be_any(kind):
    still = {"critic": Critic(steps=0)}
    whole = crafted(crafter(kind, **still))
    halves = [crafted(crafter(kind, **still), rows) for rows in (slice(0, 4), slice(4, 8))]
    ragged = [crafted(crafter(kind, **still), rows) for rows in (slice(0, 5), slice(5, 8))]
    for parts in (halves, ragged):
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)
    coupled = [crafted(crafter(kind, form="coupled", **still), rows) for rows in (slice(0, 4), slice(4, 8))]
    together = crafted(crafter(kind, form="coupled", **still))
    assert (torch.cat(coupled) - together).abs().max() > 1e-3, "the original's form ties images together"


def test_the_two_forms_agree_for_equal_residuals_in_a_batch_of_128(monkeypatch):
    monkeypatch.setattr(crafting, "REFERENCE_BATCH", 8)
    prior, search = Linear(sigmoid=True), FictitiousAttacker(steps=1)
    latents = matrix(1, 3, "latents").expand(8, 3)
    features = matrix(1, 10, "features").expand(8, 10)
    moved = [search(world(prior, form), features, latents) - latents for form in ("per_image", "coupled")]
    torch.testing.assert_close(*moved)
    assert moved[0].abs().min() > 1e-6


def test_strengths_are_in_order():
    """Card crafter.md, check 4: private latents around (3, -2), those of nobody around 0, an exact search."""

    class Exact(FictitiousAttacker):
        def __call__(self, world, features, latents):
            return exactly(prior, features).detach()

    prior = Linear(latents=2)
    private = torch.tensor([3.0, -2.0], dtype=torch.float64) + 0.1 * matrix(48, 2, "private")
    original = edge(prior.draw(private))
    # of the toy's scale: the card's own constants are for features of 16,384 numbers
    implicit = Implicit(solver="cg", products=2)
    critic = Critic(steps=5, rows=32, rate=4e-3, penalty=20.0)
    lengths, changes = [], []
    for beta in (0.0, 1.0, 30.0):
        defense = crafter(
            attacker=Exact(),
            implicit=implicit,
            critic=critic,
            steps=80,
            saved_every=1,
            beta=beta,
            rate=0.1,
            form="coupled",
        )
        with seeds.isolated("critic"):
            network = nn.Sequential(
                nn.Flatten(), nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 1), nn.Flatten(0)
            ).double()
        nobody = prior.sample(48, seeds.generator("nobody"))
        *_, last = defense.craft(world(prior, "coupled"), network, original, nobody, seeds.generator("rows"))
        lengths.append(float(exactly(prior, last.features).mean(0).norm()))
        changes.append(float((last.features - original).square().mean()))
    assert lengths == sorted(lengths) and lengths[0] < 0.6 * float(private.mean(0).norm()) < lengths[2]
    assert changes == sorted(changes, reverse=True) and changes[2] < 0.1 * changes[0]


def test_utility_alone_leaves_features_where_they_are():
    plain = edge(torch.rand(8, 12, 1, 1, generator=seeds.generator("images"), dtype=torch.float64))
    assert torch.equal(crafted(crafter(rate=0.0)), plain)
    assert torch.equal(crafted(crafter(steps=0)), plain)
    bound = crafted(crafter(beta=1e9))
    assert 0 < (bound - plain).abs().max() <= 4 * 0.05, "within as many steps of Adam"


def test_a_critic_that_says_the_same_of_all_gives_no_private_gradient():
    class Flat(Linear):
        def new_critic(self):
            network = super().new_critic()
            for parameter in network.parameters():
                nn.init.zeros_(parameter)
            return network

    prior = Flat(sigmoid=True)
    assert torch.equal(crafted(crafter(critic=Critic(steps=0), beta=0.0), prior=prior), crafted(crafter(steps=0)))


def test_the_last_update_that_is_kept_is_that_of_index_447():
    assert crafter(steps=450, saved_every=3).last == 447
    assert [crafter(steps=steps, saved_every=3).last for steps in (1, 3, 4, 6, 7)] == [0, 0, 3, 3, 6]
    assert torch.equal(crafted(crafter(steps=3, saved_every=3)), crafted(crafter(steps=1, saved_every=1)))


def test_projected_features_are_not_negative():
    assert crafted(crafter(rate=0.5)).min() < 0 <= crafted(crafter(rate=0.5, projected=True)).min()


def test_features_of_crafter_z_are_those_of_pictures():
    prior = Linear(latents=2)
    released = crafted(crafter(CrafterZ), prior=prior)
    torch.testing.assert_close(edge(prior.draw(exactly(prior, released))), released)
    strong, weak = (crafted(crafter(CrafterZ, d=d, beta=1e3, rate=0.2, steps=20), prior=prior) for d in (None, 1e6))
    plain = crafted(crafter(steps=0), prior=prior)
    assert (strong - plain).norm() < (weak - plain).norm(), "a larger d, less utility"


def test_what_is_not_equipped_or_not_coupled_is_refused():
    with pytest.raises(Refused, match="expected equip"):
        crafter().release(edge, torch.zeros(1, 12, 1, 1, dtype=torch.float64), torch.arange(1), seeds.generator("x"))
    for wrong in ({"hessian": "none"}, {"solver": "newton"}, {"solver": "cg", "products": None}):
        with pytest.raises(Refused, match=f"implicit.{list(wrong)[-1]}: "):
            Implicit(**wrong)
    with pytest.raises(Refused, match="defense.form: got 'batch'; choices: per_image, coupled"):
        crafter(form="batch")
    with pytest.raises(Refused, match="defense.chunk: expected null with form=coupled"):
        crafter(form="coupled", chunk=2)


class Guess(nn.Module):
    def __init__(self, *, observed, latents):
        super().__init__()
        self.guess = nn.Sequential(nn.Linear(*observed, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, *latents))
        self.double()

    def forward(self, observed):
        return self.guess(observed)


def amortised(steps, stop=None, state=None):
    amortiser = Amortisation(network=Guess, steps=steps, batch_size=16, pool=5, passes=4, unit=30, rate=1e-2)
    for done, (_, _, give) in enumerate(amortiser.fit(edge, Linear(), seeds.generator("amortiser"), state), start=1):
        state = {name: value.clone() for name, value in give().items()}
        if done == stop:
            break
    return amortiser, state


def test_a_guess_is_nearer_than_a_draw_after_as_many_steps():
    prior = Linear()
    amortiser, state = amortised(300)
    guess = amortiser.learned(edge, prior, state)
    features = edge(prior.draw(prior.sample(20, seeds.generator("private"))))
    starts = {"guess": guess(features), "draw": prior.sample(20, seeds.generator("start"))}
    search = FictitiousAttacker(steps=5, prior_weight=0)
    residuals = {
        name: (world(prior).view(search(world(prior), features, start)) - features).norm(dim=1).mean()
        for name, start in starts.items()
    }
    assert residuals["guess"] < 0.5 * residuals["draw"]


def test_an_amortiser_that_was_stopped_goes_on_to_the_same_bits():
    whole, stopped = amortised(90)[1], amortised(90, stop=1)[1]
    again = amortised(90, state=stopped)[1]
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    amortiser = Amortisation(network=Guess, batch_size=4, pool=5, passes=4)
    draws = [amortiser.latents(Linear(), seeds.generator("pool"), step) for step in (0, 5, 19, 20)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[3]), "a pool, drawn anew after 20 steps"


WORDS = (
    "dataset=toy",
    "dataset.size=32",
    "dataset.classes=3",
    "dataset.public_classes=3",
    "dataset.images_per_class=4",
    "prior=toy",
    "architecture=cnn",
    "architecture.size=32",
    "architecture.widths=[4,4]",
    "architecture.features=4",
    "recipe.epochs=1",
    "evidence=released_features",
    "evidence.cut=stage1",
    "evidence.images=5",
    "defense=crafter_small",
    "defense.prior.steps=6",
    "defense.prior.unit=3",
    "defense.prior.width=4",
    "defense.prior.latent_size=5",
    "defense.amortiser.steps=4",
    "defense.amortiser.network.widths=[4,4,4]",
    "defense.amortiser.network.hidden=4",
    "defense.group=3",
    "defense.steps=4",
    "defense.attacker.steps=2",
    "compute=cpu",
    "compute.threads=1",
    "tracking=none",
)


def pipeline(store, *overrides):
    return Pipeline(plan_for("attack", *WORDS, *overrides, store=store))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A store in which features were crafted once."""
    store = tmp_path_factory.mktemp("crafted")
    return store, pipeline(store).evidence.observed


def test_generator_and_amortiser_are_artefacts_that_strengths_share(full):
    store, observed = full
    made = {kind: [one.id for one in pipeline(store).store.list(kind)] for kind in ("prior", "prepared")}
    assert [len(ids) for ids in made.values()] == [1, 1] and observed.shape == (5, 4, 16, 16)
    again = pipeline(store, "missing=fail")
    (prepared,) = again.store.list("prepared")
    assert prepared.recipe["prior"]["prior"]["latent_size"] == 5 and "beta" not in str(prepared.recipe["defense"])
    assert {"target", "prior"} == set(prepared.provenance["parents"])
    assert torch.equal(again.evidence.observed, observed)
    (prior,) = again.store.list("prior")
    attackers = pipeline(store, "prior=crafter_gan_small", *(word.replace("defense.", "") for word in WORDS[15:19]))
    assert attackers.prior.artefact.id == prior.id, "an attacker who owns the same pictures shares it"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("prior@defense.prior=pixels",),
            "defense.prior: expected a generator that offers realism, critic, got Pixels",
        ),
        (("prior@defense.prior=ked_gan_small",), "defense.prior: expected a generator that"),
        (("dataset.size=16", "architecture.size=16"), "crafter_gan: expected a size of 32, 64 or 128, got 16"),
    ],
)
def test_a_generator_that_will_not_do_is_refused_before_anything_is_trained(tmp_path, words, said):
    kept = [word for word in WORDS if not (word.startswith("defense.prior.") and words[0].startswith("prior@"))]
    kept = [word for word in kept if word.split("=")[0] not in {other.split("=")[0] for other in words}]
    with pytest.raises(Refused, match=said):
        plan_for("attack", *kept, *words, store=tmp_path)


def test_work_that_was_killed_goes_on_to_the_same_bits(full, tmp_path, monkeypatch):
    """Killed while the amortiser learns, and again between two groups that are released."""
    words = ("defense.amortiser.unit=2",)

    class Killed(BaseException):
        pass

    def dies_after(kind, method, calls):
        original, left = getattr(kind, method), [calls]

        def dying(*arguments):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(*arguments)

        monkeypatch.setattr(kind, method, dying)

    for kind, method, calls in ((Amortisation, "loss", 3), (Crafter, "release", 1)):
        with monkeypatch.context() as monkeypatch:
            dies_after(kind, method, calls)
            with pytest.raises(Killed):
                _ = pipeline(tmp_path, *words).evidence
    assert torch.equal(pipeline(tmp_path, *words).evidence.observed, full[1])
