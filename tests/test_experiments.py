"""The published setups of `conf/experiment/`: each composes, is accepted as its header runs it, and goes through attack
and judgement on embedded data, with small networks in place of the published ones."""

import functools
import math
import re
from pathlib import Path

import pytest
import safetensors.torch
from contract.listing import CONF, composed, files, options, within
from contract.test_configs import commands, header

from midefense import seeds
from midefense.architectures.official import weights_of
from midefense.pipeline.pipeline import Pipeline
from midefense.plan.compose import compose
from midefense.plan.read import read_plan
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.priors.stylegan2.importer import import_file
from midefense.store.store import Store

FILES = [file for file in files() if file.parts[0] == "experiment"]
COUNTS = {
    ".": 4,
    "base": 6,
    "bido": 13,
    "brep_mi": 3,
    "c2f_mi": 3,
    "crafter": 4,
    "deep_inversion": 2,
    "digits": 7,
    "gmi": 10,
    "if_gmi": 10,
    "ked_mi": 7,
    "lokt": 10,
    "lomma": 18,
    "midre": 44,
    "mirror": 7,
    "network_inversion": 12,
    "nls": 6,
    "plg_mi": 3,
    "ppa": 16,
    "rlb_mi": 6,
    "rolss": 15,
    "secret_gen": 4,
    "tl_dmi": 6,
    "vib": 5,
    "vmi": 2,
}
PAPERS = ("gmi", "if_gmi", "ked_mi", "lomma", "midre", "nls", "plg_mi", "ppa")
CELEBA_64 = ("gmi", "ked_mi", "lomma", "plg_mi")  # attacks of 64 px
PUBLIC = ("own", "ffhq", "facescrub")  # the images that the commands of a file of theirs take, in order
PRIORS = {"gmi": "gmi_gan", "lomma_gmi": "gmi_gan", "plg_mi": "plg_gan"}  # all others: ked_gan
ROWS = [file for file in FILES if file.parts[1] in PAPERS and "mnist" not in file.stem]
PRIVATE = {"facescrub": "facescrub", "celeba": "celeba_ppa", "stanford_dogs": "stanford_dogs"}
ATTACKS = ("if_gmi", "ppa", "gmi", "ked_mi", "plg_mi", "lomma_gmi", "lomma_ked_mi")  # of files of `midre`
SMOOTHING = {"none": None, "positive": 0.1, "negative": -0.05}
ERASED = (None, 0.4, 0.8)  # the area that the commands of a file of `midre` erase, in order
IDENTITIES = 3
BLOCKS = 4  # of a generator of 32 px
SIDES = {299: 48, 160: 24}  # of what evaluators are shown, beside a target of 32 px


def identity(file: Path) -> str:
    return file.relative_to("experiment").with_suffix("").as_posix()


METHODS = ("brep_mi", "c2f_mi", "deep_inversion", "lokt", "mirror", "network_inversion", "rlb_mi", "secret_gen")
DEFENSES = ("rolss", "tl_dmi", "vib")
OF_A_METHOD = [file for file in FILES if file.parts[1] in (*METHODS, *DEFENSES)]
DIGITS = [file for file in FILES if file.parts[1] == "digits"]
CRAFTER = [file for file in FILES if file.parts[1] == "crafter"]
SETUPS = [(file, number) for file in ROWS for number in range(len(commands(file)))]


def setup(value: Path | int) -> str:
    return str(value) if isinstance(value, int) else identity(value)


@functools.cache
def as_written(file: Path, number: int = 0) -> tuple[dict, dict, list[str]]:
    """Configuration, choices and overrides of a command in a file's header."""
    verb, overrides = commands(file)[number]
    assert verb == "evaluate"
    return *composed(verb, *overrides), overrides


def test_the_listing():
    counts = {}
    for file in FILES:
        folder = file.parent.relative_to("experiment").as_posix()
        counts[folder] = counts.get(folder, 0) + 1
    assert counts == COUNTS
    assert sum(file.parts[1] == "midre" for file, _ in SETUPS) >= 37


@pytest.mark.parametrize("file", FILES, ids=identity)
def test_a_header_says_what_was_published_and_measured_and_how_that_is_known(file):
    whole = "\n".join(header(file))
    if file.parts[1] == "base":  # shared by rows: no number is its own
        return
    assert re.search(r"published: (none|.+\((verified in the source|recalled)\b)", whole)
    assert re.search(r"measured: \S", whole)
    if file in ROWS:
        assert re.search(r"\nmeasured: not run: needs .*(FaceScrub|CelebA|Stanford Dogs)", whole)
        assert re.search(r"\nsetup: (the authors' code|the first upload of the authors' code|recalled|ours)", whole)


def first_is_quick(file: Path, number: int) -> object:
    """On slow runs: the further commands of a file, each of which is composed anew."""
    return pytest.param(file, number, marks=[pytest.mark.slow] if number else [])


@pytest.mark.parametrize(("file", "number"), [first_is_quick(*each) for each in SETUPS], ids=setup)
def test_a_name_says_what_is_in_the_file(file, number):
    config, choices, _ = as_written(file, number)
    folder, name = file.parts[1], file.stem
    if folder == "midre":
        attack, rest = next((kind, name[len(kind) + 1 :]) for kind in ATTACKS if name.startswith(f"{kind}_"))
        assert choices["attack"].startswith(attack)
        assert choices["defense"] == ("none" if number == 0 else "random_erasing")
        assert config["defense"].get("scale", [0.1, None])[1] == ERASED[number]
        public = "" if choices["public"] == "own" else f"_{choices['public']}"
        private = choices["dataset"].removesuffix("_ppa")
        assert rest == f"{choices['architecture']}_{private}{public}"
        return
    if folder in CELEBA_64:
        host = folder if folder != "lomma" else f"lomma_{'gmi' if name.startswith('gmi_') else 'ked_mi'}"
        architecture, variant = name.removeprefix(f"{host.removeprefix('lomma_')}_").split("_celeba")
        variant = "" if (folder, variant) == ("gmi", "_rt") else variant  # LOMMA's column is that of `gmi`
        assert (choices["architecture"], choices["dataset"]) == (architecture, "celeba")
        assert (choices["attack"], choices["defense"]) == (f"{host}{variant}", "none")
        assert choices["public"] == PUBLIC[number]
        assert choices["prior"] == PRIORS.get(host, "ked_gan")
        return
    private = next(private for private in PRIVATE if f"_{private}_" in name)
    architecture, last = name.split(f"_{private}_")
    assert (choices["architecture"], choices["dataset"]) == (architecture, PRIVATE[private])
    if folder == "nls":
        assert config["defense"].get("alpha") == SMOOTHING[last]
        assert choices["attack"] == {"facescrub": "ppa", "celeba": "ppa_celeba_ffhq"}[private]
    else:
        assert choices["attack"].startswith(folder) and choices["defense"] == "none"
        prior = config["prior"]["weights"].rpartition("/")[2].removesuffix(".safetensors")
        assert re.sub("_(default|example)$", "", last) == prior


@pytest.mark.parametrize("file", ROWS, ids=identity)
def test_a_row_starts_from_published_weights(file):
    config = as_written(file)[0]
    networks = [config["architecture"], *(judge["architecture"] for judge in config["evaluators"].values())]
    assert all(network.get("pretrained") or "/backbones/" in (network.get("weights") or "") for network in networks)


OF_224_PX = [file for file in ROWS if "64" not in file.stem]
OF_64_PX = [file for file in ROWS if file not in OF_224_PX]


@pytest.mark.parametrize("file", OF_64_PX, ids=identity)
def test_networks_of_64_px_are_trained_as_long_as_in_their_papers(file):
    config, choices, _ = as_written(file)
    assert config["recipe"]["epochs"] == (40 if choices["architecture"] == "ir152_64" else 50)
    assert config["dataset"]["size"] == config["architecture"]["size"] == 64
    assert len(config["evidence"]["classes"]) == (100 if file.stem.endswith("_paper") else 300)


@pytest.mark.parametrize("file", OF_224_PX, ids=identity)
def test_a_row_of_224_px_decodes_pictures_for_each_network(file):
    """What a network is given has its size: nothing is resized again inside, nor erased before it."""
    config = as_written(file)[0]
    judges = config["evaluators"]
    assert config["dataset"]["size"] == config["architecture"]["size"] == 224
    assert {name: judge["size"] for name, judge in judges.items()} == {
        name: judge["architecture"]["size"] for name, judge in judges.items()
    }
    assert judges["main"]["size"] == 299
    if "picture_size" in config["attack"]["search"]:
        assert config["attack"]["search"]["picture_size"] == 299, "what IF-GMI keeps for the evaluator"


def test_seventy_four_commands_are_of_224_px():
    assert sum(len(commands(file)) for file in OF_224_PX) == 74


@pytest.mark.parametrize("file", ROWS, ids=identity)
def test_rows_start_from_the_weights_that_torchvision_names_default(file):
    """One rule, as both repositories say; the header says it where torchvision has more than one."""
    config, text = as_written(file)[0], (CONF / file).read_text()
    for network in (config["architecture"], *(judge["architecture"] for judge in config["evaluators"].values())):
        if network.get("pretrained") and "weights" in network:  # torchvision's: others have one file
            known = weights_of(network.get("variant", "inception_v3"))
            assert network["weights"] == known.DEFAULT.name
    several = config["architecture"].get("pretrained") and len({*weights_of(config["architecture"]["variant"])}) > 1
    said = "weights: torchvision's default, V2" in text and "contains random erasing" in text
    assert said == bool(several)


def test_the_command_line_wins_over_a_row_and_a_row_over_its_base():
    row = "experiment=nls/resnet152_facescrub_negative"
    config, choices = compose("evaluate", [row, "attack.search.steps=1", "architecture=densenet201"])
    assert (config["attack"]["search"]["steps"], choices["architecture"]) == (1, "densenet201")
    assert config["architecture"]["variant"] == "densenet201" and config["architecture"]["pretrained"]
    assert (config["defense"]["alpha"], config["dataset"]["size"]) == (-0.05, 224)
    assert compose("evaluate", [row, "dataset.size=112"])[0]["dataset"]["size"] == 112
    example = compose("evaluate", ["experiment=if_gmi/densenet169_facescrub_ffhq_example"])[0]
    assert (example["evidence"]["classes"], example["attack"]["search"]["steps"]) == ([0], [50, 10, 10, 10])


@pytest.mark.parametrize("file", CRAFTER, ids=identity)
def test_a_row_of_crafter_cuts_a_target_of_public_attributes(file):
    for number, _ in enumerate(commands(file)):
        config, choices, _ = as_written(file, number)
        assert (config["dataset"]["label"], config["train_on"], config["architecture"]["cut"]) == (
            "attributes",
            "public",
            "layer1",
        )
        assert (choices["evidence"], choices["metrics"]) == ("released_features", "paired")
        assert config["evaluators"]["main"]["train_on"] == "private", "the judge knows the people"
        assert config["defense"].get("cut", "layer1") == "layer1"
        assert config["architecture"]["mean"] == 0 and config["architecture"]["std"] == 1, (
            "images in [0, 1] as they are"
        )
        assert file.stem.startswith(choices["defense"]) or file.stem == "none_celeba"


NAMED = {"mobilenet_v1": "timm", "cnn": "network_inversion_cnn", "mlp": "network_inversion_mlp", "vit": "vit_tiny"}
OF_COMMANDS = [first_is_quick(file, number) for file in OF_A_METHOD for number in range(len(commands(file)))]


@pytest.mark.parametrize(("file", "number"), OF_COMMANDS, ids=setup)
def test_a_setup_of_a_method_is_what_its_name_and_title_say(file, number):
    config, choices, _ = as_written(file, number)
    folder, title = file.parts[1], header(file)[0]
    if folder in METHODS:
        assert choices["attack"].startswith(folder) and choices["defense"] == "none"
    else:
        assert choices["defense"] in (folder, "none") and (number > 0 or choices["defense"] == folder)
    network, _, rest = file.stem.partition(f"_{choices['dataset']}")
    network = network.removeprefix("blackbox_").removeprefix("whitebox_").removeprefix("ppa_")
    assert choices["architecture"] == NAMED.get(network, network)
    assert choices["public"] == ("ffhq" if (folder, rest) == ("lokt", "_ffhq") else "own")
    if asked := re.search(r"(all )?([\d,]+) identities", title):
        wanted = config["evidence"]["classes"]
        assert wanted == "all" if asked[1] else len(wanted) == int(asked[2])


def test_setups_on_digits_share_their_target_their_prior_and_their_judge():
    written = [as_written(file) for file in DIGITS]
    same = (
        "dataset",
        "architecture",
        "recipe",
        "public",
        "prior",
        "evaluators",
        "evidence",
        "metrics",
        "seeds",
        "group",
    )
    first = written[0][0]
    for file, (config, choices, _) in zip(DIGITS, written, strict=True):
        assert choices["attack"] == f"{file.stem}_small" and choices["prior"] == "gmi_gan_small"
        assert {name: config.get(name) for name in same} == {name: first.get(name) for name in same}, file


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """One store for all dry runs, so that equal targets, priors and evaluators are made once."""
    return tmp_path_factory.mktemp("experiments") / "store"


@pytest.fixture(scope="module")
def generator_file(tmp_path_factory) -> Path:
    """A StyleGAN2 of 32 px and eight channels, as the importer writes them."""
    folder = tmp_path_factory.mktemp("generator")
    config = StyleGan2Config(resolution=32, z_dim=16, w_dim=16, channel_base=256, channel_max=8, mapping_layers=2)
    with seeds.isolated("tiny generator"):
        safetensors.torch.save_file(Generator(config).state_dict(), folder / "state.safetensors")
    import_file(folder / "state.safetensors", folder / "tiny.safetensors")
    return folder / "tiny.safetensors"


def small_network(width: int) -> dict:
    node = composed("evaluate", "architecture=cnn")[0]["architecture"]
    return {**node, "widths": [width], "features": 8}


def with_skips() -> dict:
    """What RoLSS needs of a network: additions that it can leave out."""
    return {**composed("evaluate", "architecture=vit_tiny")[0]["architecture"], "width": 8, "depth": 2, "heads": 2}


def small_prior(prior: dict, generator_file: Path) -> dict:
    """The same kind of prior: a published generator becomes the tiny one, one that learns hardly does."""
    if "weights" in prior:
        return {**prior, "weights": str(generator_file)}
    brief = {"steps": 2, "lessons": 2, "warmup": 0, "width": 2, "channel_base": 32, "channel_max": 4, "latent_size": 8}
    return {**prior, **{name: value for name, value in brief.items() if name in prior}}


BRIEF = {  # of an attack: what it does hardly, by the name of an option in any of its parts
    "steps": 1, "generations": 1, "episodes": 2, "hidden": 4, "max_rounds": 2, "points": 2, "draws": 256, "each": 2,
    "size": 4, "candidates": 2, "keep": 1, "repeats": 1, "batch_size": 4, "memory": 8, "picture_size": SIDES[299],
}  # fmt: skip
SLOTS = ("init", "search", "select")


def briefly(part: dict) -> dict:
    """A part of an attack with little to do; what is named `keep` in words, and searches within searches, too."""
    steps = part.get("steps")
    numbers = {name: value for name, value in BRIEF.items() if isinstance(part.get(name), int | float | list)}
    lists = {"steps": [1] * min(len(steps), BLOCKS)} if isinstance(steps, list) else {}
    inner = {
        name: briefly(part[name])
        for name in ("descent", "search", "stages", "half", "full")
        if isinstance(part.get(name), dict)
    }
    rise = part.get("schedule") and isinstance(part["schedule"].get("warmup"), int)
    soon = {"schedule": {**part["schedule"], "warmup": 0}} if rise else {}
    return {**part, **numbers, **lists, **inner, **soon}


def small_attack(attack: dict) -> dict:
    """The same attack in one step per stage, with a few candidates."""
    if "generator" in attack:  # network inversion has no slots: its generator is the attack
        return {
            **attack,
            "generator": {**attack["generator"], "width": 2, "latent_size": 4},
            "steps": 2,
            "batch_size": 6,
            "candidates": 2,
        }
    slots = {slot: briefly(attack[slot]) for slot in SLOTS}
    if "embedding" in slots["init"]:  # C2FMI: an embedding that learns in place of a published one
        coarse = composed("attack", "attack/init=coarse_small", "attack=c2f_mi")[0]["attack"]["init"]
        learning = {**coarse["learning"], "steps": 2}
        public = coarse["embedding"]["learning"]
        network = {**public["network"], "size": 32}
        embedding = {**coarse["embedding"], "learning": {**public, "network": network, "steps": 2}}
        slots["init"] |= {"embedding": embedding, "learning": learning, "candidates": 4}
        slots["search"] |= {"population": 6, "keep": 3}
    if "mutation" in slots["search"]:  # MIRROR breeds what its pool gave
        slots["init"] |= {"candidates": 3}
    if (
        attack.get("surrogate") is not None and "students" in attack["surrogate"]
    ):  # students are small, and hardly learn
        students = attack["surrogate"]["students"]
        network = {**small_network(4), "_partial_": True}
        students = {name: {**student, "network": network, "steps": 1} for name, student in students.items()}
        slots["surrogate"] = {**briefly(attack["surrogate"]), "students": students}
    return {**attack, **slots}


def small_evidence(evidence: dict) -> dict:
    """Few of the same people, or few pictures."""
    if "classes" not in evidence:
        return {**evidence, "images": 4}
    wanted, few = evidence["classes"], {"images": 1} if "images" in evidence else {}
    return {**evidence, **few, "classes": wanted if wanted == "all" else [one for one in wanted if one < IDENTITIES]}


def small_defense(defense: dict, generator_file: Path) -> dict:
    """The same defense at the stage there is; one that crafts features takes one short step."""
    defense = {**defense, "cut": "stage1"} if defense.get("cut") else defense
    if defense.get("neck") == "drop":  # the small network has none
        defense = {**defense, "neck": "keep"}
    if "amortiser" not in defense:
        return defense
    brief = {part: {**defense[part], "steps": 1} for part in ("attacker", "critic", "amortiser")}
    network = {**defense["amortiser"]["network"], "widths": [2, 2, 2], "hidden": 4}
    brief["amortiser"] |= {"network": network, "batch_size": 2}
    return {**defense, **brief, "steps": 1, "prior": small_prior(defense["prior"], generator_file)}


def small(config: dict, generator_file: Path, attack: str) -> dict:
    """A configuration on a few synthetic faces with small networks; attack, defense, metrics and recipes stay."""
    faces = composed("evaluate", "dataset=synthetic_faces")[0]["dataset"]
    taught = {name: config["dataset"][name] for name in ("label",) if name in config["dataset"]}
    cut = {"cut": "stage1"} if config["architecture"].get("cut") else {}
    few = {"images_per_identity": 8, "test_images_per_identity": 2, "public_images_per_identity": 4}
    evaluators = {
        name: {
            **judge,
            "size": SIDES.get(judge["size"]),
            "architecture": small_network(6),
            "recipe": {**judge["recipe"], "epochs": min(1, judge["recipe"]["epochs"])},
        }
        for name, judge in config["evaluators"].items()
    }
    return {
        **config,
        "dataset": {**faces, **few, **taught, "identities": IDENTITIES, "public_identities": 2, "size": 32},
        "architecture": {**(with_skips() if "factors" in config["defense"] else small_network(4)), **cut},
        "defense": small_defense(config["defense"], generator_file),
        "recipe": {**config["recipe"], "epochs": 1, "sampler": "shuffle"},  # too few people for batches of 16
        "public": composed("evaluate")[0]["public"],
        "evidence": small_evidence(config["evidence"]),
        "prior": small_prior(config["prior"], generator_file),
        "attack": small_attack(config["attack"]),
        "evaluators": evaluators,
        # so that attacks that differ in what is made small here have rows of their own
        "seeds": {**config["seeds"], "attack": options("attack").index(attack)},
        "judge_at_chance": True,  # evaluators of one epoch
    }


OTHERS = [
    file for file in FILES if file not in (*ROWS, *OF_A_METHOD, *DIGITS) and file.parts[1] not in ("base", "crafter")
]
TRIED = [file for file in (*OF_A_METHOD, *DIGITS) if file.parts[1] != "tl_dmi"]  # which begins with published weights
LIKE_ANOTHER = re.compile(  # of `TRIED`: the same once its network and its images are small
    r"digits/|ir152|facenet|resnet(50|101|152)_s|resnet1|vit|/cnn_|densenet1[67]|densenet2|svhn|fashion|/mlp_cifar|toolbox|quick"
)
OTHERS = [*OTHERS, *TRIED]
NETWORKS = re.compile(r"(densenet|resnet|resnest|maxvit_t)\d*")
DRY_RUNS = [*SETUPS, *((file, number) for file in OTHERS for number in range(len(commands(file))))]


def like(file: Path) -> tuple[str, str]:
    """The paper and the name of a row of 224 px, whichever network it is of."""
    return file.parts[1], NETWORKS.sub("", file.stem)


def dry_run_of(file: Path, number: int) -> object:
    """On slow runs: the second and third command of a file, which put a defense before the attack that the first runs
    or take other public images; and all networks but one where they are the same network once they are small."""
    same = file in OF_64_PX and not ("vgg16_64" in file.stem and not file.stem.endswith("_ffhq"))
    same = same or (file in OF_224_PX and file is not next(filter(lambda one: like(one) == like(file), OF_224_PX)))
    same = same or (file in TRIED and LIKE_ANOTHER.search(file.as_posix()))
    return pytest.param(file, number, marks=[pytest.mark.slow] if number or same else [])


@pytest.mark.parametrize(("file", "number"), [dry_run_of(*each) for each in DRY_RUNS], ids=setup)
def test_a_dry_run_gives_a_row_of_what_a_command_names(file, number, shared, generator_file):
    config, choices, overrides = as_written(file, number)
    shrunk = within(shared, small(config, generator_file, choices["attack"]))
    result = Pipeline(read_plan("evaluate", shrunk, choices, overrides)).result
    row, numbers = result.metrics["row"], result.metrics["metrics"]
    assert row["attack"] == choices["attack"] and row["defense"].split("(")[0] == choices["defense"]
    matched = choices["metrics"] == "matched"
    names = ["matched_ssim/train"] if matched else [f"attack_accuracy_top1/{judge}" for judge in config["evaluators"]]
    assert all(math.isfinite(numbers[name]["value"]) for name in names)
    ids, store = row["ids"], Store(shared)
    assert_kept(store.open(ids["target"], "target").recipe["defense"], shrunk["defense"])
    assert_kept(store.open(ids["recovered"], "recovered").recipe["attack"], shrunk["attack"])


CRAFTED = [
    pytest.param(file, number, marks=[pytest.mark.slow] if number or file.stem != "crafter_lfw" else [])
    for file in CRAFTER
    for number in range(len(commands(file)))
]


@pytest.mark.parametrize(("file", "number"), CRAFTED, ids=setup)
def test_a_dry_run_of_crafter_gives_a_row_of_what_a_command_names(file, number, shared, generator_file):
    config, choices, overrides = as_written(file, number)
    shrunk = within(shared, small(config, generator_file, choices["attack"]))
    result = Pipeline(read_plan("evaluate", shrunk, choices, overrides)).result
    row, numbers = result.metrics["row"], result.metrics["metrics"]
    assert row["attack"] == choices["attack"] and row["defense"].split("(")[0] == choices["defense"]
    assert all(math.isfinite(numbers[f"paired_accuracy_top1/{judge}"]["value"]) for judge in config["evaluators"])
    recovered = Store(shared).open(row["ids"]["recovered"], "recovered").recipe
    assert_kept(recovered["attack"], shrunk["attack"])
    target = Store(shared).open(row["ids"]["target"], "target").recipe
    assert_kept(recovered.get("release", target["defense"]), shrunk["defense"])
    assert ("release" in recovered) == choices["defense"].startswith(("crafter", "feature_"))


def assert_kept(recipe: object, node: object) -> None:
    """What a configuration says stands in the recipe of what was made: all but what changes no number."""
    if isinstance(node, dict):
        for name in node.keys() & recipe.keys() - {"_target_"}:  # classes go by their full names there
            assert_kept(recipe[name], node[name])
    else:
        assert recipe == node
