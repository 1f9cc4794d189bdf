"""Framing: every network is shown pictures of its own size, resized once from the file or the generator's picture."""

import re

import pytest
import safetensors.torch
import torch
from conftest import plan_for
from contract.listing import composed, files
from contract.test_configs import commands
from torch import nn

from midefense import metrics, seeds
from midefense.architectures.small import MLP
from midefense.attacks.problem import Problem
from midefense.attacks.search.layerwise import Layerwise
from midefense.datasets.splits import Splits, require_same_pictures
from midefense.metrics import features
from midefense.oracle import Oracle
from midefense.pipeline import judge
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.priors.base import Prior, resized
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.priors.stylegan2.importer import import_file
from midefense.store.artefacts import Draft
from midefense.store.store import Store
from midefense.types import Batch, Evidence, Images, Refused, Trace, clip_images, to_pixels

CPU = torch.device("cpu")
PUBLISHED = [
    file
    for file in files()
    if (
        file.parts[0] == "attack"
        and len(file.parts) == 2
        and re.match("(ppa|if_gmi)(?!_small|_masked|_upright)", file.stem)
    )
    or (file.parts[0] == "prior" and re.match("stylegan2_(?!small)", file.stem))
]
TOY = ("dataset=toy", "dataset.size=16", "architecture=mlp", "architecture.widths=[8]", "recipe.epochs=1")
ATTACK = ("prior=toy", "attack=mi_face", "attack.search.steps=2", "evidence.classes=[0,1]", "metrics=privacy")
JUDGE = ("evaluators.main.architecture.widths=[8,16]", "evaluators.main.recipe.epochs=3", "tracking=none")


# the published rows -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator_file(tmp_path_factory):
    """A StyleGAN2 of 512 px with a channel or two, as the importer writes them."""
    folder = tmp_path_factory.mktemp("generator")
    config = StyleGan2Config(resolution=512, z_dim=4, w_dim=4, channel_base=1024, channel_max=2, mapping_layers=1)
    with seeds.isolated("tiny generator"):
        state = Generator(config).state_dict()
    state = {name: torch.ones_like(value) if "noise_strength" in name else value for name, value in state.items()}
    safetensors.torch.save_file(state, folder / "state.safetensors")  # noise: detail that a second resize would blur
    import_file(folder / "state.safetensors", folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def seen_by_the_target(row, store, weights, *changes):
    """What enters the layers of a row's target when its attack looks at one latent, and the generator's picture."""
    named = [f"experiment={row}", f"prior.weights={weights}", "architecture.pretrained=false", *changes]
    plan = plan_for("evaluate", *named, store=store)
    dataset, seen = plan.target.dataset.build(), []
    told = {"classes": 2, "channels": dataset.channels, "size": dataset.size}
    prior, model = plan.prior.given(**told).build(), plan.target.architecture.given(**told).build()
    model.preprocess.register_forward_hook(lambda layer, inputs, made: seen.append(made * layer.std + layer.mean))
    latents = prior.sample(1, seeds.generator("latents"))
    problem = Problem(
        prior=prior,
        oracle=Oracle(model, "whitebox"),
        evidence=Evidence(torch.tensor([0]), torch.tensor([0])),
        state={},
        rng=seeds.generator("rng"),
        objective=None,
        views=None,
        reads=("logits",),
        chunk=None,
        device=CPU,
    )
    with torch.no_grad():
        problem.look(latents, torch.tensor([0]))
        return seen[0], prior.draw(latents)


@pytest.mark.parametrize(
    ("row", "crop"),
    [
        ("ppa/resnet18_facescrub_ffhq", slice(56, 456)),
        pytest.param("if_gmi/resnet152_stanford_dogs_afhqdog", slice(0, 512), marks=pytest.mark.slow),
    ],
)
def test_the_target_of_a_row_sees_one_resize_of_the_generators_picture(row, crop, store, generator_file):
    seen, drawn = seen_by_the_target(row, store, generator_file)
    assert drawn.shape[-1] == 512
    once = nn.functional.interpolate(drawn[..., crop, crop], size=(224, 224), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen, once, atol=1e-5, rtol=0)
    twice, _ = seen_by_the_target(row, store, generator_file, "dataset.size=299")
    assert (twice - once).abs().max() > 1e-2, "the test can fail"


def test_edges_of_what_is_erased_stay_sharp(store, generator_file):
    row = ("experiment=midre/ppa_resnet18_facescrub", "defense=random_erasing", "architecture.pretrained=false")

    def colours(*changes):
        plan = plan_for("evaluate", *row, f"prior.weights={generator_file}", *changes, store=store)
        size, defense = plan.target.dataset.build().size, plan.target.defense.build()
        model = plan.target.architecture.given(classes=2, channels=3, size=size).build()
        defense.rebuild(model)
        ids = torch.arange(4)
        black = batch_of(torch.zeros(4, 3, size, size), ids)
        return len(model.preprocess.fit(defense.transform(black).images)[:, 0].unique())

    assert colours() == 2, "the fill and the rest, nothing in between"
    assert colours("dataset.size=299") > 2


def batch_of(images, ids):
    return Batch(images, torch.zeros_like(ids), ids, torch.ones(len(ids)), seeds.generator("boxes"))


# the judge -------------------------------------------------------------------------------------------------------


class Drawing(Prior):
    """Latents are pictures of 12 px, of which images of 4 px are made."""

    def __init__(self):
        super().__init__(channels=1, size=4)

    def sample(self, count, rng):
        return torch.rand(count, 1, 12, 12, generator=rng)

    def draw(self, latents):
        return 1.5 * latents - 0.25  # beyond [0, 1], as pictures of a generator

    def frame(self, drawn, size=None):
        return super().frame(drawn, self.size if size is None else size)

    def decode(self, latents):
        return self.frame(self.draw(latents))


class Remembering(nn.Module):
    """Features and logits of the mean colour; keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, images):
        self.shown.append(images.clone())
        means = images.mean((1, 2, 3))
        return Trace(logits=torch.stack([means, 1 - means], 1), features=means[:, None])


def pictures(seed):
    return torch.rand(8, 1, 12, 12, generator=seeds.generator("pictures", seed))


def splits_of(size):
    labels = torch.arange(2).repeat_interleave(4)
    train, test, public = (
        Images(to_pixels(resized(pictures(seed), size)), labels, torch.arange(8) + 8 * seed, [f"{seed}a", f"{seed}b"])
        for seed in range(3)
    )
    return Splits(train, test, public)


def recovered(store, **tensors):
    owners = torch.arange(2).repeat_interleave(3)
    named = {"evidence.labels": torch.tensor([0, 1]), "queries": torch.zeros(2), "selected.evidence": owners}
    draft = Draft(kind="recovered", name="recovered", recipe={"kind": "recovered"})
    return Store(store).work(draft).finish({**named, **tensors}, {}, bill={"seconds": 1.0})


def judged(artefact, evaluator, target, sizes):
    return judge.judge(
        recovered=artefact,
        prior=Drawing(),
        target=target,
        splits=splits_of(4),
        evaluators={"main": evaluator},
        metrics={"accuracy": metrics.AttackAccuracy(top=[1]), "distance": metrics.FeatureDistance()},
        utility={"test_accuracy_top1": 0.9},
        device=CPU,
        shown={name: splits_of(size) for name, size in sizes.items()},
    )


def among(images, shown):
    """Whether each of `images` is one of those that were shown, to 1e-5."""
    shown = torch.cat([batch for batch in shown if batch.shape[-1] == images.shape[-1]])
    return (images[:, None] - shown).abs().flatten(2).amax(2).amin(1).max() < 1e-5


def test_an_evaluator_of_its_own_size_is_shown_what_is_framed_for_it(store):
    latents = Drawing().sample(6, seeds.generator("latents"))
    evaluator, target = Remembering(), Remembering()
    found = judged(recovered(store, **{"selected.latents": latents}), evaluator, target, {"main": 6})
    drawn = Drawing().draw(latents)
    assert {images.shape[-1] for images in evaluator.shown} == {6}, "candidates, both anchors and references"
    for images in (drawn, Drawing().draw(anchor_samples(6))):
        assert among(clip_images(resized(images, 6)), evaluator.shown)
    assert among(stored(pictures(0), 6), evaluator.shown) and among(stored(pictures(1), 6), evaluator.shown)
    assert not among(clip_images(resized(resized(drawn, 4), 6)), evaluator.shown), "not resized twice"
    assert {images.shape[-1] for images in target.shown} == {4} and among(clip_images(resized(drawn, 4)), target.shown)
    assert found.tensors["reconstructions"].shape[-1] == found.tensors["nearest"].shape[-1] == 4


def stored(images, size):
    return to_pixels(resized(images, size)).float() / 255


def anchor_samples(count):
    return Drawing().sample(count, seeds.generator("evaluate", "prior samples"))


def test_without_a_size_of_its_own_an_evaluator_is_shown_the_targets_images(store):
    latents = Drawing().sample(6, seeds.generator("latents"))
    evaluator = Remembering()
    judged(recovered(store, **{"selected.latents": latents}), evaluator, Remembering(), {})
    assert {images.shape[-1] for images in evaluator.shown} == {4}


def test_kept_pictures_are_shown_where_the_prior_cannot_draw_them(store):
    drawn = Drawing().draw(Drawing().sample(6, seeds.generator("latents")))
    pixels, larger = (to_pixels(resized(drawn, size)) for size in (4, 6))
    evaluator, target = Remembering(), Remembering()
    kept = {"selected.pixels": pixels, "selected.pictures": larger, "selected.latents": torch.zeros(6, 1)}
    judged(recovered(store, **kept), evaluator, target, {"main": 6})
    assert among(larger.float() / 255, evaluator.shown) and among(pixels.float() / 255, target.shown)
    again = Remembering()
    judged(recovered(store / "other", **kept), again, Remembering(), {"main": 9})
    assert among(resized(larger.float() / 255, 9), again.shown), "a third size comes of the larger pictures"


def test_inception_is_shown_pictures_of_its_size_where_an_evaluator_is(store, monkeypatch):
    inception = Remembering()
    monkeypatch.setattr(features, "require_inception", lambda: None)
    monkeypatch.setattr(judge.Inception, "size", 6)
    monkeypatch.setattr(features, "Inception", lambda legacy_ppa: inception)
    latents = Drawing().sample(6, seeds.generator("latents"))
    judge.judge(
        recovered=recovered(store, **{"selected.latents": latents}),
        prior=Drawing(),
        target=Remembering(),
        splits=splits_of(4),
        evaluators={"main": Remembering()},
        metrics={"kid": metrics.KernelDistance(features="inception")},
        utility={"test_accuracy_top1": 0.9},
        device=CPU,
        shown={"main": splits_of(6)},
    )
    assert {images.shape[-1] for images in inception.shown} == {6}


# the plan and the store ------------------------------------------------------------------------------------------


def test_an_evaluator_learns_from_the_same_pictures_in_its_own_size(run_verb, store):
    plain = run_verb("evaluate", *TOY, *ATTACK, *JUDGE)
    sized = run_verb("evaluate", *TOY, *ATTACK, *JUDGE, "evaluators.main.size=24")
    kept = Store(store)
    evaluators = [kept.open(row.metrics["row"]["ids"]["evaluators"]["main"], "target") for row in (plain, sized)]
    assert [one.recipe["dataset"]["size"] for one in evaluators] == [16, 24]
    assert plain.metrics["row"]["ids"]["recovered"] == sized.metrics["row"]["ids"]["recovered"], "no attack of its own"
    assert plain.metrics["row"]["protocol"] != sized.metrics["row"]["protocol"]
    again = [word for word in JUDGE if word.startswith("tracking")]
    named = f"evaluators.main.artefact={evaluators[1].id}"
    assert run_verb("evaluate", *TOY, *ATTACK, *again, named).id == sized.id, "a stored one brings its size"
    same = run_verb("evaluate", *TOY, *ATTACK, *JUDGE, "evaluators.main.size=16")
    assert same.id == plain.id


@pytest.mark.parametrize("size", [0, "big", 1.5])
def test_a_size_that_is_none_is_refused(size, store):
    expected = r"evaluators.main.size: expected a whole number from 1 to 8192 \(pixels a side\), or null"
    with pytest.raises(Refused, match=expected):
        plan_for("evaluate", *TOY, *ATTACK, f"evaluators.main.size={size}", store=store)


def test_a_size_that_the_dataset_cannot_have_is_refused(store):
    faces = ("dataset=synthetic_faces", "dataset.size=32", "evaluators.main.size=299", "attack=ppa_small")
    with pytest.raises(Refused, match=r"evaluators.main.size=299: dataset.size: expected 16 to 256 .*size=null"):
        plan_for("evaluate", *faces, store=store)


def test_other_pictures_are_refused():
    one, other = splits_of(4), splits_of(6)
    require_same_pictures("evaluators.main.size", one, other)
    other.private_train.ids = other.private_train.ids.flip(0)
    with pytest.raises(Refused, match="evaluators.main.size: expected the private pictures of the target's dataset"):
        require_same_pictures("evaluators.main.size", one, other)


def test_evaluators_of_one_row_may_have_different_sizes_and_their_features_are_known(run_verb):
    words = (*JUDGE, "+evaluator@evaluators.face=cnn_wide", "evaluators.face.architecture.widths=[8,16]")
    words += ("evaluators.face.recipe.epochs=3", "evaluators.main.size=24", "evaluators.face.size=12")
    found = run_verb("evaluate", *TOY, *ATTACK, *words).metrics
    assert {"knn_distance/main", "knn_distance/face"} <= set(found["metrics"])
    for anchor in ("real", "prior"):
        assert {"knn_distance/main", "knn_distance/face"} <= set(found["anchors"][anchor])


# what IF-GMI keeps -----------------------------------------------------------------------------------------------


def test_pictures_of_a_search_from_within_are_framed_from_what_was_drawn():
    search = Layerwise(steps=[1], optimizer=None, feature_radius=[0], latent_radius=[0], picture_size=6)
    prior, plain = Drawing(), Layerwise(steps=[1], optimizer=None, feature_radius=[0], latent_radius=[0])
    drawn = prior.draw(prior.sample(3, seeds.generator("latents")))
    kept = search._kept(prior, drawn, prior.frame(drawn))
    assert torch.equal(kept["pixels"], to_pixels(resized(drawn, 4)))
    assert torch.equal(kept["pictures"], to_pixels(resized(drawn, 6)))
    assert set(plain._kept(prior, drawn, prior.frame(drawn))) == {"pixels"}


def test_if_gmi_stores_them_for_every_stage_that_has_pixels(run_verb):
    words = ("prior=toy", "attack=if_gmi", "attack.init.size=20", "attack.init.candidates=2", "evidence.classes=[0,1]")
    words += ("attack.search.steps=[1,1]", "attack.search.picture_size=24", "tracking=none")
    tensors = run_verb("attack", *TOY, *words).tensors()
    stages = {name.split(".")[0] for name in tensors if name.endswith(".pixels")} - {"trace"}
    assert stages == {"optimised", "stage00", "stage01", "selected"}
    for stage in stages:
        assert tensors[f"{stage}.pictures"].shape == (4, 1, 24, 24) and tensors[f"{stage}.pixels"].shape[-1] == 16


# the floor -------------------------------------------------------------------------------------------------------


def test_the_floor_is_also_drawn_as_the_attack_draws_its_starts(run_verb):
    words = ("prior=toy", "attack=ppa_small", "attack.init.size=20", "attack.init.candidates=2", "attack.select.keep=2")
    words += ("attack.search.steps=1", "attack.select.repeats=1", "evidence.classes=[0,1]", "metrics=privacy", *JUDGE)
    anchors = run_verb("evaluate", *TOY, *words).metrics["anchors"]
    assert anchors["truncated"].keys() == anchors["prior"].keys()
    assert anchors["truncated"]["knn_distance/main"] != anchors["prior"]["knn_distance/main"]
    whole = run_verb("evaluate", *TOY, *words, "attack.init.psi=1").metrics["anchors"]
    assert "truncated" not in whole and whole["prior"] == anchors["prior"]
    assert "truncated" not in run_verb("evaluate", *TOY, *ATTACK, *JUDGE).metrics["anchors"]


def test_truncated_samples_are_the_starts_before_anything_is_asked(store, run_verb):
    """Latents of the anchor: the first row of styles drawn towards the mean, for all layers."""
    words = ("prior=toy", "attack=ppa_small", "attack.init.size=20", "attack.init.candidates=2", "attack.select.keep=2")
    words += ("attack.search.steps=1", "attack.select.repeats=1", "evidence.classes=[0,1]", *JUDGE)
    pipeline = Pipeline(plan_for("evaluate", *TOY, *words, store=store))
    prior = pipeline._prior_of(pipeline.recovered)
    draw = pipeline._truncated(pipeline.recovered, prior)
    starts = draw(50, seeds.generator("starts"))
    assert torch.equal(starts, prior.styles(50, seeds.generator("starts"), 0.5, 8)[:, 0])
    assert starts.abs().max() <= 0.5 < prior.sample(50, seeds.generator("starts")).abs().max()


# what is composed ------------------------------------------------------------------------------------------------


def test_published_evaluators_have_a_size_and_others_the_targets():
    sizes = {
        name: compose("evaluate", [f"evaluator@evaluators.main={name}"])[0]["evaluators"]["main"]["size"]
        for name in ("cnn_wide", "facenet_vggface2", "inception_v3")
    }
    assert sizes == {"cnn_wide": None, "facenet_vggface2": 160, "inception_v3": 299}


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_commands_with_a_published_generator_name_a_target_of_the_size_of_its_images(file):
    """A smaller one would see pictures that were resized twice, as its training images."""
    (verb, overrides) = commands(file)[0]
    config = composed(verb, *overrides)[0]
    assert config["prior"]["_target_"].endswith("StyleGan2")
    assert config["dataset"]["size"] <= config["architecture"]["size"]


def test_a_network_of_another_size_still_resizes_inside():
    model = MLP(classes=2, channels=1, widths=[4], size=8)
    images = torch.rand(2, 1, 16, 16, generator=seeds.generator("images"))
    torch.testing.assert_close(model(images).logits, model(resized(images, 8)).logits)
