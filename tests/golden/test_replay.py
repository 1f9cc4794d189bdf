"""The replay of recorded answers: on files made here, and on those of the originals, right and plausibly wrong."""

import contextlib
import copy
import functools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import replay
import torch
from conftest import ROOT
from kornia.metrics import ssim as kornia_ssim
from pieces import (
    bido,
    brep_mi,
    c2f_mi,
    crafter,
    crafter_attackers,
    gmi,
    inversion,
    ked,
    lokt,
    lomma,
    losses,
    networks,
    pairs,
    plg,
    registry,
    rolss,
    stylegan2,
    vib,
    vmi,
)
from pieces.recording import Entry, Recording, recordings
from pieces.registry import replay_of, replays
from pieces.rules import Draws, NotThereYet, relative_error, row_errors, to_rounding, without_gradient
from pieces.tiny import TinyClassifier
from torch import nn
from torch.nn.functional import cross_entropy

from midefense.architectures.state_names import to_published
from midefense.attacks import coarse, inversion_terms, matching, naturalness, objectives, surrogate, views
from midefense.attacks.agents import Actor, Agents
from midefense.attacks.inversion import Bank
from midefense.attacks.objectives import Poincare
from midefense.attacks.scores import Reward
from midefense.attacks.search import voting
from midefense.attacks.search.distribution import Distribution
from midefense.attacks.search.repulsion import BoundaryRepulsion
from midefense.defenses import crafting, disco, skips, trapdoors
from midefense.defenses import vib as vib_defense
from midefense.defenses.bido import BiDO
from midefense.defenses.implicit import Linearised
from midefense.defenses.label_smoothing import LabelSmoothing
from midefense.defenses.transfer import TransferLearning
from midefense.defenses.trapdoors import TrapMID
from midefense.priors.inpainting import InpaintingGan
from midefense.priors.nets.gmi import Critic, Generator
from midefense.priors.nets.ked import MinibatchDiscrimination
from midefense.priors.nets.network_inversion import UpsampledHotGenerator
from midefense.types import Answer

REFERENCE = ROOT.parent / "shared" / "reference"
FILES = sorted(REFERENCE.rglob("*.npz"))
needs_recordings = pytest.mark.skipif(
    not FILES, reason=f"the recorded answers of the original implementations are not at {REFERENCE}"
)
# Small networks of the recorded constructors, and what goes in.
SMALL = {
    "gan32.DGWGAN32": (functools.partial(Critic, channels=1, size=32, width=4), (3, 1, 32, 32)),
    "gan32.GeneratorMNIST": (functools.partial(Generator, latent_size=10, channels=1, size=32, width=4), (3, 10)),
}


def write_networks(folder: Path, prefix: str = "", described: bool = True) -> Path:
    """A file of the layout of networks.npz, with weights under `prefix`, and the .json beside it."""
    arrays, facts = {}, {}
    for name, (build, shape) in SMALL.items():
        module = Draws(prefix).fill(build())
        inputs = Draws().uniform("inputs", shape)
        arrays |= {f"{name}/in0": inputs.numpy(), f"{name}/out0": module(inputs).detach().numpy()}
        state = {key: list(tensor.shape) for key, tensor in to_published(module).items()}
        facts[name] = {"gain": 1.0, "state": state, "n_params": sum(p.numel() for p in module.parameters())}
    np.savez(folder / "other.npz", **arrays)
    if described:
        (folder / "other.json").write_text(json.dumps(facts))
    return folder / "other.npz"


def changed(path: Path, **changes: object) -> Path:
    """The file with arrays replaced; `change` is called with the array, None drops it."""
    with np.load(path) as file:
        arrays = dict(file)
    for key, change in changes.items():
        arrays[key] = change(arrays[key]) if callable(change) else change
    np.savez(path, **{key: array for key, array in arrays.items() if array is not None})
    return path


def run(capsys, *arguments: object) -> tuple[int, str]:
    """The exit code of a command line, and what it printed."""
    code = replay.main([str(argument) for argument in arguments])
    return code, capsys.readouterr().out


# Files made here


def test_a_file_it_has_never_seen_is_replayed(tmp_path, capsys):
    code, printed = run(capsys, write_networks(tmp_path))
    assert code == 0 and "4 entries compared, 0 failures" in printed
    assert "other.npz gan32.DGWGAN32 out0  0.0e+00 of 1.0e-04" in printed


def test_a_disturbed_number_is_a_failure(tmp_path, capsys):
    def disturb(array):
        array.flat[0] += 0.01 * np.abs(array).max()
        return array

    code, printed = run(capsys, changed(write_networks(tmp_path), **{"gan32.DGWGAN32/out0": disturb}))
    assert code == 1 and "FAIL  other.npz gan32.DGWGAN32 out0  1.0e-02 of 1.0e-04" in printed
    assert "4 entries compared, 1 failures" in printed


def test_a_number_that_is_none_is_a_failure(tmp_path, capsys):
    code, printed = run(capsys, changed(write_networks(tmp_path), **{"gan32.DGWGAN32/out0": lambda a: a * np.nan}))
    assert code == 1 and "out0  nan of" in printed


def test_another_fill_needs_its_prefix(tmp_path, capsys):
    file = write_networks(tmp_path, prefix="second/")
    assert run(capsys, file)[0] == 1
    assert run(capsys, "--prefix", "second/", file)[0] == 0
    assert run(capsys, "--prefix", "third/", file)[0] == 1


def test_a_network_of_the_published_width_needs_no_description(tmp_path, capsys):
    file = write_networks(tmp_path, described=False)
    code, printed = run(capsys, file)  # these are narrower, which nothing says
    assert code == 1 and "n_params" not in printed
    module = Draws("x").fill(Critic(channels=1, size=32, width=64))
    inputs = Draws().uniform("inputs", (2, 1, 32, 32))
    np.savez(file, **{"gan32.DGWGAN32/in0": inputs.numpy(), "gan32.DGWGAN32/out0": module(inputs).detach().numpy()})
    assert run(capsys, "--prefix", "x", file)[0] == 0


def test_names_and_counts_of_the_original_are_compared(tmp_path, capsys):
    file = write_networks(tmp_path)
    facts = json.loads(file.with_suffix(".json").read_text())
    facts["gan32.DGWGAN32"]["n_params"] += 1
    state = facts["gan32.GeneratorMNIST"]["state"]
    state["l1.0.weights"] = state.pop("l1.0.weight")
    file.with_suffix(".json").write_text(json.dumps(facts))
    code, printed = run(capsys, file)
    assert code == 1 and "FAIL  other.npz gan32.DGWGAN32 n_params" in printed
    assert "gan32.GeneratorMNIST: cannot be replayed: Refused: " in printed and "1 missing (l1.0.weight)" in printed


def test_an_unknown_piece_is_a_failure_and_one_that_waits_is_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(registry, "NOT_THERE_YET", {"A method": ("first_*",), "Another": ("second_*",)})
    waits = {"first_new/z": np.zeros(2), "second_stats/mean": np.zeros(2)}
    np.savez(tmp_path / "a.npz", **waits)
    code, printed = run(capsys, tmp_path / "a.npz")
    assert code == 0 and "not there yet  a.npz: A method: first_new\n" in printed
    assert "not there yet  a.npz: Another: second_stats\n" in printed
    np.savez(tmp_path / "a.npz", **waits, **{"mystery/z": np.zeros(2)})
    code, printed = run(capsys, tmp_path / "a.npz")
    assert code == 1 and "FAIL  a.npz mystery: expected a piece that is known" in printed


def test_a_key_that_no_one_replays_is_a_failure(tmp_path, capsys):
    code, printed = run(capsys, changed(write_networks(tmp_path), **{"gan32.DGWGAN32/hidden": np.zeros(3)}))
    assert code == 1 and "FAIL  other.npz gan32.DGWGAN32: hidden: expected a key that this piece has" in printed


def test_a_piece_without_its_inputs_or_outputs_is_a_failure(tmp_path, capsys):
    code, printed = run(capsys, changed(write_networks(tmp_path), **{"gan32.DGWGAN32/in0": None}))
    assert code == 1 and "expected the keys in0 and out0, got out0" in printed
    np.savez(tmp_path / "a.npz", **{"label_smoothing/0.1/loss": np.zeros(()), "bido/x": np.zeros((2, 2))})
    code, printed = run(capsys, tmp_path / "a.npz")
    assert code == 1 and "expected the key 'poincare/targets' in the same file" in printed
    assert "FAIL  a.npz bido: expected something to compare, got none" in printed


def test_short_names_belong_to_their_own_file(tmp_path, capsys, monkeypatch):
    names = ("main", "hot", "G", "T")
    waits = {"A method": tuple(f"rlb_mi/{name}" for name in names), "Another": ("secret_gen/attack",)}
    monkeypatch.setattr(registry, "NOT_THERE_YET", waits)
    monkeypatch.setattr(registry, "REPLAYS", {})
    agent = {f"{name}/z": np.zeros(2) for name in names}
    np.savez(tmp_path / "renamed.npz", **agent)
    code, printed = run(capsys, tmp_path / "renamed.npz")
    assert code == 0 and "A method: rlb_mi/main, rlb_mi/hot, rlb_mi/G, rlb_mi/T" in printed
    np.savez(tmp_path / "secret_gen_b.npz", **{"attack/z": np.zeros(2)})
    assert run(capsys, tmp_path / "secret_gen_b.npz")[0] == 0
    np.savez(tmp_path / "renamed.npz", **{"attack/z": np.zeros(2)})
    assert run(capsys, tmp_path / "renamed.npz")[0] == 1
    np.savez(tmp_path / "renamed.npz", **agent, **{"mystery": np.zeros(2)})
    assert run(capsys, tmp_path / "renamed.npz")[0] == 1


def write_search(file: Path, prefix: str) -> Path:
    """GMI's loop written out (card gmi.md, section 4B), for sizes, labels and a fill that no recording has."""
    config = {"K": 4, "dim": 2, "dataset": "mnist", "iden": [3, 1, 1], "steps": 3, "prefix": prefix}
    config |= {"lr": 0.03, "momentum": 0.8, "lamda": 50, "clip": 1, "gain_G": 2.0, "gain_T": 1.3}
    draws, sizes = Draws(prefix), {"channels": 1, "size": 32, "width": 2}
    make = draws.fill(Generator(latent_size=7, **sizes), "G/", 2.0).double()
    judge = draws.fill(Critic(**sizes), "C/").double()
    target = draws.fill(TinyClassifier(4, 1), "T/", 1.3).double()
    arrays = {"gmi_dmi_x/config_json": np.frombuffer(json.dumps(config).encode(), np.uint8)}
    for restart in range(2):
        z, v, rows = 3 * Draws().uniform(f"z{restart}", (3, 7)).double() - 1.5, 0, []
        arrays[f"gmi_dmi_x/restart{restart}/z0"] = z.numpy()
        for _ in range(3):
            images = make(z.requires_grad_())
            prior, identity = -judge(images).mean(), cross_entropy(target(images).logits, torch.tensor([3, 1, 1]))
            total = prior + 50 * identity
            rows.append([term.item() for term in (total, prior, identity)])
            ahead = 0.8 * v - 0.03 * torch.autograd.grad(total, z)[0]
            z, v = (z.detach() - 0.8 * v + 1.8 * ahead).clamp(-1, 1), ahead
        arrays |= {f"gmi_dmi_x/restart{restart}/z3": z.numpy(), f"gmi_dmi_x/restart{restart}/loss": np.array(rows)}
    np.savez(file, **arrays)
    return file


def test_a_search_it_has_never_seen_is_replayed(tmp_path, capsys):
    file = write_search(tmp_path / "a.npz", prefix="second/")
    code, printed = run(capsys, file)
    assert code == 0 and "4 entries compared, 0 failures" in printed
    assert run(capsys, "--prefix", "third/", file)[0] == 1  # what the command line says goes before the configuration


def test_what_is_no_recording_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "text.npz").write_text("no numbers")
    np.save(tmp_path / "single.npy", np.zeros(2))
    np.savez(tmp_path / "objects.npz", **{"poincare/logits": np.array([{}], dtype=object)})
    np.savez(tmp_path / "empty.npz")
    (tmp_path / "cut.npz").write_bytes(write_networks(tmp_path).read_bytes()[:300])
    expected = {"absent.npz": "expected a recorded file, got none", "empty.npz": "expected at least one array"}
    expected |= dict.fromkeys(("text.npz", "single.npy", "objects.npz", "cut.npz"), "expected an .npz file of plain")
    for name, sentence in expected.items():
        code, printed = run(capsys, tmp_path / name)
        assert code == 1 and f"{tmp_path / name}: {sentence}" in printed, name
        assert printed.count("\n") == 2  # the sentence, and the summary


def test_a_later_method_is_one_function(monkeypatch):
    monkeypatch.setattr(registry, "REPLAYS", {})
    monkeypatch.setattr(registry, "NOT_THERE_YET", {"A method": ("first_*",)})
    with pytest.raises(NotThereYet, match="A method"):
        replay_of("first_new")
    replays("first_*")(known := lambda recording: iter(()))
    assert replay_of("first_new") is known and replay_of("mystery") is None


@pytest.mark.slow
def test_it_runs_from_the_root_of_the_repository(tmp_path):
    file = write_networks(tmp_path, prefix="x")
    command = [sys.executable, "tests/golden/replay.py", "--prefix", "x", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "4 entries compared, 0 failures" in done.stdout, done.stderr


# The rules


def test_weights_come_from_their_names():
    """The rule of the recordings, in numbers: RandomState(crc32(name)) for a matrix, a variance, a mean and a scale."""
    draws, matrix = Draws(), [0.3579709, -0.0345301, 0.6680189]
    assert draws.weight("fc.weight", (2, 4), gain=2.0).flatten()[:3].tolist() == pytest.approx(matrix, abs=1e-6)
    first = [float(draws.weight(f"bn.{name}", (3,))[0]) for name in ("weight", "bias", "running_mean", "running_var")]
    assert first == pytest.approx([1.0659105, 0.1842292, -0.2273982, 1.0209314], abs=1e-6)
    assert draws.weight("bn.num_batches_tracked", ()).item() == 0
    assert torch.equal(Draws("fc.").weight("weight", (2, 4)), draws.weight("fc.weight", (2, 4)))
    assert torch.equal(draws.state({"weight": (2, 4)}, tag="fc.")["weight"], draws.weight("fc.weight", (2, 4)))


def test_errors_are_relative_to_the_largest_number():
    known = torch.tensor([1.0, -4.0])
    assert relative_error(torch.tensor([1.0, -4.4]), known) == pytest.approx(0.1)
    assert relative_error(torch.tensor([0.1, 0.0]), torch.tensor([0.0, 0.0])) == math.inf
    assert relative_error(torch.tensor([0.1, 0.0]), torch.tensor([0.0, 0.0]), floor=1.0) == pytest.approx(0.1)
    assert relative_error(known, known) == 0 and relative_error(known, known[:1]) == math.inf


def test_tables_are_compared_row_by_row():
    table = torch.tensor([[5.0, 10.0], [0.001, 0.01]])
    moved = table + torch.tensor([[0.1, 0.0], [0.0, 0.001]])
    assert row_errors(moved, table).tolist() == pytest.approx([0.01, 0.1], rel=1e-3)
    norms = torch.tensor([-1.0, 2.0, 0.0])
    assert row_errors(norms, norms).tolist() == [0, 0, 0]
    assert row_errors(torch.tensor([0.0, 2.0, 0.0]), norms)[0] == 1  # -1 says that there was no gradient at all


def test_biases_in_front_of_a_norm_are_rounding():
    names = ["ls.0.bias", "ls.2.0.bias", "ls.2.1.weight", "ls.2.1.bias", "layer1.3.bias", "layer1.4.weight", "fc.bias"]
    assert [name for name, skipped in zip(names, without_gradient(names), strict=True) if skipped] == [
        "ls.2.0.bias",
        "layer1.3.bias",
    ]


def test_each_path_of_a_replay_has_its_own_rounding():
    """Two restarts whose kinks go either way: one is as recorded where draws are moved up, the other where down."""

    @to_rounding
    def replayed(recording, arithmetic):
        for path, sign in (("restart0", 1), ("restart1", -1)):
            wrong = 0.0 if arithmetic.moved * sign > 0 else 0.5
            yield from (Entry(f"{path}/{key}", error, 1e-4) for key, error in (("z1", 0.0), ("z20", wrong)))
        yield Entry("image20", 2.0, 1e-4)

    found = {entry.key: entry.error for entry in replayed(None)}
    assert found == {f"restart{i}/{key}": 0.0 for i in (0, 1) for key in ("z1", "z20")} | {"image20": 2.0}


def test_recorded_weights_and_students_of_lomma_are_those_that_are_asked(monkeypatch):
    config = {"K": 7, "gain_T": 1.0, "prefix": "other/", "models": 3, "lamda": 50, "lam": 0.5, "loss": "logit_loss"}
    said = np.frombuffer(json.dumps(config).encode(), np.uint8)
    recording = Recording(Path("a.npz"), "lomma_gmi_x", {"config_json": said}, {})
    known = {"objective.terms.identity.weight": 50.0, "objective.terms.features.weight": 25.0}
    assert lomma.weights(config) == known and "features" not in str(lomma.weights({**config, "loss": "cel"}))
    networks = lomma.students(recording, torch.float64).networks
    expected = [Draws("other/").fill(TinyClassifier(7, 3), f"S{index}/", 1.0) for index in (1, 2)]
    assert all(torch.equal(a.fc.weight, b.fc.weight.double()) for a, b in zip(networks, expected, strict=True))
    monkeypatch.setitem(config, "models", 1)
    recording.arrays["config_json"] = np.frombuffer(json.dumps(config).encode(), np.uint8)
    assert lomma.students(recording, torch.float64) is None


def test_truncation_is_read_from_the_key():
    assert stylegan2.truncation("io/w_psi07_cut4") == {"psi": 0.7, "cutoff": 4}
    assert stylegan2.truncation("io/img_none_psi1") == {"psi": 1.0, "cutoff": None}
    assert stylegan2.truncation("io/w_psi025") == {"psi": 0.25, "cutoff": None}
    with pytest.raises(ValueError, match="_psi<digits>"):
        stylegan2.truncation("io/w_mean")


# The recordings of the originals


def outcomes(file: str, piece: str) -> dict[str, list[str]]:
    """Outcome to the lines of one recorded piece."""
    (recording,) = [each for each in recordings(REFERENCE / file) if each.name == piece]
    lines: dict[str, list[str]] = {}
    for line in replay.replay_piece(recording):
        lines.setdefault(line.outcome, []).append(str(line))
    return lines


@needs_recordings
@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_recorded_piece_is_known(file):
    for recording in recordings(file):
        try:
            assert replay_of(recording.name) is not None, recording.name
        except NotThereYet as method:
            assert str(method)


@needs_recordings
@pytest.mark.parametrize(
    ("file", "piece"),
    [
        ("losses.npz", "poincare"),
        ("losses.npz", "label_smoothing"),
        ("losses.npz", "bido"),
        ("networks.npz", "gan32.DGWGAN32"),
        ("networks.npz", "gan32.GeneratorMNIST"),
        ("networks.npz", "target32.MCNN"),
        ("stylegan2_cond_32.npz", "stylegan2"),
        ("attacks/gmi.npz", "gmi_dmi_mnist"),
        ("attacks/gmi.npz", "gan_wgan"),
        ("attacks/bido.npz", "bido_hsic_gaussian"),
        ("attacks/bido.npz", "bido_sampler"),
        pytest.param("attacks/vib_mid.npz", "vib_mid/vgg16_vib", marks=pytest.mark.slow),
        ("attacks/vib_mid.npz", "vib_mid/cnn"),
        ("attacks/tl_dmi.npz", "tl_dmi/facenet64"),
        pytest.param("attacks/tl_dmi.npz", "tl_dmi/ir152", marks=pytest.mark.slow),
        pytest.param("attacks/tl_dmi.npz", "tl_dmi/vgg16", marks=pytest.mark.slow),
        ("attacks/rolss.npz", "rolss/densenet_g8_2323_i16_bn2"),
        ("attacks/rolss.npz", "rolss/vit_64_p16_l3_h4_d32_m64"),
        pytest.param("attacks/rolss.npz", "rolss/resnet18", marks=pytest.mark.slow),
        ("attacks/trap_mid.npz", "trap_mid/ce"),
        ("attacks/trap_mid.npz", "trap_mid/negls"),
        ("attacks/trap_mid.npz", "trap_mid/negls_schedule"),
        ("attacks/trap_mid.npz", "trap_mid/feat"),
        ("attacks/trap_mid.npz", "trap_mid/blend"),
        ("attacks/vmi.npz", "vmi_flow"),
        ("attacks/vmi.npz", "vmi_gaussian"),
        ("attacks/vmi.npz", "vmi_layeredminegan"),
        pytest.param("attacks/vmi.npz", "vmi_layeredflow_partial", marks=pytest.mark.slow),
        ("attacks/lomma.npz", "lomma_stats"),
        ("attacks/lomma.npz", "lomma_iden"),
        ("attacks/lomma.npz", "lomma_distill_tau2"),
        pytest.param("attacks/lomma.npz", "lomma_gmi_ours", marks=pytest.mark.slow),
        pytest.param("attacks/lomma.npz", "lomma_kedmi_ours", marks=pytest.mark.slow),
        ("attacks/ked_mi.npz", "ked_parts"),
        ("attacks/plg_mi.npz", "plg_topn"),
        ("attacks/plg_mi.npz", "plg_losses"),
        ("attacks/plg_mi.npz", "plg_augment"),
        ("attacks/crafter.npz", "crafter/attack"),
        ("attacks/crafter.npz", "crafter/other"),
        ("attacks/lokt.npz", "lokt/loss"),
        ("attacks/lokt.npz", "lokt/final"),
        ("attacks/lokt.npz", "lokt/target_queries"),
        ("attacks/lokt.npz", "lokt/margin"),
        pytest.param("attacks/lokt.npz", "lokt/G64", marks=pytest.mark.slow),
        pytest.param("attacks/lokt.npz", "lokt/D64", marks=pytest.mark.slow),
        ("attacks/c2f_mi.npz", "c2f_mi/stage1"),
        ("attacks/c2f_mi.npz", "c2f_mi/de_bin2"),
        ("attacks/c2f_mi.npz", "c2f_mi/de_mask_bin2"),
        pytest.param("attacks/c2f_mi.npz", "c2f_mi/p2f", marks=pytest.mark.slow),
        ("attacks/deep_inversion.npz", "deep_inversion/terms"),
        ("attacks/deep_inversion.npz", "deep_inversion/lowres"),
        ("attacks/deep_inversion.npz", "deep_inversion/adi"),
        pytest.param("attacks/deep_inversion.npz", "deep_inversion/cifar", marks=pytest.mark.slow),
        ("attacks/secret_gen.npz", "secret_gen/mask"),
        ("attacks/secret_gen.npz", "secret_gen/toyselect"),
        pytest.param("attacks/secret_gen.npz", "secret_gen/stage1", marks=pytest.mark.slow),
        pytest.param("attacks/secret_gen.npz", "secret_gen/attack", marks=pytest.mark.slow),
        ("attacks/network_inversion.npz", "network_inversion/terms"),
        ("attacks/network_inversion.npz", "network_inversion/stat"),
        ("attacks/network_inversion.npz", "network_inversion/train"),
        ("attacks/network_inversion.npz", "network_inversion/train_V"),
        ("attacks/network_inversion.npz", "network_inversion/net"),
    ],
)
def test_the_original_is_reproduced(file, piece):
    found = outcomes(file, piece)
    assert "FAIL" not in found and found["ok"]


@needs_recordings
@pytest.mark.slow
def test_all_recorded_files_are_reproduced(capsys):
    code, printed = run(capsys, *FILES)
    assert code == 0, "\n".join(line for line in printed.splitlines() if line.startswith("FAIL"))


def with_attack(monkeypatch, change):
    """GMI's attack, changed after it was composed."""
    original = gmi.attack_of

    def attack_of(*arguments):
        change(attack := original(*arguments))
        return attack

    monkeypatch.setattr(gmi, "attack_of", attack_of)


def no_look_ahead(monkeypatch):
    def change(attack):
        attack.search.optimizer = functools.partial(attack.search.optimizer, nesterov=False)

    with_attack(monkeypatch, change)


def sum_for_mean(monkeypatch):
    with_attack(monkeypatch, lambda attack: setattr(attack.search, "reference_batch", 1))


def no_box(monkeypatch):
    with_attack(monkeypatch, lambda attack: setattr(attack.search, "bounds", None))


def no_critic(monkeypatch):
    with_attack(monkeypatch, lambda attack: setattr(attack.objective.terms[1], "weight", 0.0))


def mix_from_the_other_end(monkeypatch):
    original = gmi._critic_step
    swapped = lambda *arguments: original(*arguments[:5], 1 - arguments[5], *arguments[6:])  # noqa: E731
    monkeypatch.setattr(gmi, "_critic_step", swapped)


def weak_penalty(monkeypatch):
    monkeypatch.setattr(gmi, "PENALTY", 9.0)


def defended_by(monkeypatch, **changes):
    original = bido.defense_of

    def defense_of(config):
        defense = original(config)
        for name, value in changes.items():
            setattr(defense, name, value)
        return defense

    monkeypatch.setattr(bido, "defense_of", defense_of)


def wide_kernel(monkeypatch):
    defended_by(monkeypatch, sigma=5.5)


def plain_estimator(monkeypatch):
    defended_by(monkeypatch, hsic_form="plain")


def other_label_kernel(monkeypatch):
    defended_by(monkeypatch, label_kernel="linear")


def earlier_deviation(monkeypatch):
    """Codes that begin with less noise still."""
    monkeypatch.setattr(vib_defense, "SHIFT", 6.0)


def deviation_first(monkeypatch):
    original = vib_defense.mean_and_deviation
    monkeypatch.setattr(vib_defense, "mean_and_deviation", lambda codes: original(codes.roll(codes.shape[1] // 2, 1)))


def divergence_of_a_mean(monkeypatch):
    original = vib.defense_of
    monkeypatch.setattr(vib, "defense_of", lambda beta, **more: original(beta, reduction="mean", **more))


def front_without_its_last(monkeypatch):
    original = TransferLearning.front
    monkeypatch.setattr(TransferLearning, "front", lambda self, model: original(self, model)[:-1])


def channels_from_the_end(monkeypatch):
    monkeypatch.setattr(skips.Chain, "forward", lambda self, hidden: _last_channels(self, hidden))


def _last_channels(chain, hidden):
    seen = [hidden]
    for layer in chain.values():
        made = layer(seen)
        width = skips.kept(seen[-1].shape[1], chain.factor)
        seen[-1] = seen[-1][:, seen[-1].shape[1] - width :]
        seen.append(made)
    return torch.cat(seen, 1)


def the_other_branch(monkeypatch):
    original = rolss.defended
    other = {"attention": "mlp", "mlp": "attention", "all": "all"}
    wrong = lambda network, factors, branches: original(network, factors, branches=other[branches])  # noqa: E731
    monkeypatch.setattr(rolss, "defended", wrong)


def norm_of_the_neck(monkeypatch):
    original = vib.defense_of
    monkeypatch.setattr(vib, "defense_of", lambda beta, **more: original(beta))


def earlier_discriminators(monkeypatch):
    """Triggers that learn from the discriminators as they were before their step."""
    original = TrapMID.judged

    def wrong(self, trainer, images, learning=False):
        if learning:
            self.__dict__["earlier"] = copy.deepcopy(self.judges)
            return original(self, trainer, images, learning)
        now, self.judges = self.judges, self.earlier.eval()
        answers = original(self, trainer, images)
        self.judges = now
        return answers

    monkeypatch.setattr(TrapMID, "judged", wrong)


def triggers_learned_in_training_mode(monkeypatch):
    monkeypatch.setattr(trapdoors, "in_eval", contextlib.nullcontext)


def weights_of_the_halves_swapped(monkeypatch):
    original = TrapMID.both_halves

    def wrong(self, batch, targets):
        both = original(self, batch, targets)
        return replace(both, weight=both.weight.flip(0))

    monkeypatch.setattr(TrapMID, "both_halves", wrong)


def opacity_of_the_image(monkeypatch):
    bait = lambda self, images, targets: images.lerp(self.triggers[targets], 1 - self.opacity)  # noqa: E731
    monkeypatch.setattr(TrapMID, "bait", bait)


def wide_kernel_of_a_loss(monkeypatch):
    monkeypatch.setattr(losses, "BiDO", functools.partial(BiDO, sigma=5.5))


def loose_ball(monkeypatch):
    monkeypatch.setattr(losses, "Poincare", functools.partial(Poincare, xi=1e-3))


def ramped_smoothing(monkeypatch):
    monkeypatch.setattr(losses, "LabelSmoothing", lambda alpha, **_: LabelSmoothing(alpha=0.9 * alpha))


def flat_leak(monkeypatch):
    build, gain = networks.NETWORKS["gan32.DGWGAN32"]

    def flat(facts):
        module = build(facts)
        for layer in module.modules():
            if isinstance(layer, nn.LeakyReLU):
                layer.negative_slope = 0.01
        return module

    monkeypatch.setitem(networks.NETWORKS, "gan32.DGWGAN32", (flat, gain))


def no_cutoff(monkeypatch):
    original = stylegan2.truncation
    monkeypatch.setattr(stylegan2, "truncation", lambda key: {**original(key), "cutoff": None})


def no_noise(monkeypatch):
    original = stylegan2.generator_of

    def silent(recording):
        network = original(recording)
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                parameter.zero_()
        return network

    monkeypatch.setattr(stylegan2, "generator_of", silent)


def squared_norm(monkeypatch):
    """The paper's regulariser at the code's weight."""
    original = lomma.FeatureRegulariser.__call__
    monkeypatch.setattr(lomma.FeatureRegulariser, "__call__", lambda self, look: 32 * original(self, look))


def no_students(monkeypatch):
    monkeypatch.setattr(lomma, "asks_students", lambda variant: False)


def penalty_of_a_mean(monkeypatch):
    """The flows' average over rows for the normals, whose divergence is summed."""
    original = vmi.searched

    def averaged(*given):
        attack = original(*given)
        attack.search.over_rows = "mean"
        return attack

    monkeypatch.setattr(vmi, "searched", averaged)


def halves_of_moments(monkeypatch):
    """Mean first, deviation behind it, instead of in turn."""
    halves = lambda self, kept: self.moments(kept).chunk(2, 2)  # noqa: E731
    monkeypatch.setattr(vmi.Split, "_moments", halves)


def filled_groups(monkeypatch):
    original = bido.identity_batches
    monkeypatch.setattr(bido, "identity_batches", lambda *given: original(*given[:-1], "fill"))


def biased_deviation(monkeypatch):
    original = objectives.statistics
    scaled = lambda features, rng: {k: v * (55 / 56) ** 0.5 for k, v in original(features, rng).items()}  # noqa: E731
    monkeypatch.setattr(objectives, "statistics", scaled)


def usual_temperature(monkeypatch):
    original = surrogate.distillation
    hinton = lambda student, teacher, tau: original(student, teacher, tau) * tau**4  # noqa: E731
    monkeypatch.setattr(surrogate, "distillation", hinton)


def deviation_for_variance(monkeypatch):
    wrong = lambda self, problem, mean, log_variance, noise: mean + log_variance.exp() * noise  # noqa: E731
    monkeypatch.setattr(Distribution, "_latents", wrong)


def eval_mode(monkeypatch):
    original = ked.Oracle
    monkeypatch.setattr(ked, "Oracle", lambda target, access, mode: original(target, access))


def one_batch_for_all(monkeypatch):
    monkeypatch.setattr(
        MinibatchDiscrimination, "forward", lambda self, features: features.new_zeros(len(features), 64)
    )


def mixed_term_added(monkeypatch):
    original = Linearised.push
    monkeypatch.setattr(Linearised, "push", lambda self, vector: -original(self, vector))


def penalty_of_one_weight(monkeypatch):
    monkeypatch.setattr(crafting.torch, "where", lambda high, doubled, single: torch.tensor(single))


def norm_per_image(monkeypatch):
    original = crafter.world_of
    monkeypatch.setattr(crafter, "world_of", lambda *args, **more: replace(original(*args, **more), form="per_image"))


def threshold_of_the_lowest(monkeypatch):
    original = disco.Pruner.__init__

    def wrong(self, *arguments, share, **options):
        original(self, *arguments, share=1 - share, **options)

    monkeypatch.setattr(disco.Pruner, "__init__", wrong)


def earlier_of_equals(monkeypatch):
    def wrong(probs, rows, top):
        order = probs.flip(0).argsort(dim=0, stable=True)[-top:]
        return probs.flip(0).gather(0, order), rows.flip(0).gather(0, order)

    monkeypatch.setattr(plg, "most_confident", wrong)


def padded_window(monkeypatch):
    monkeypatch.setattr(pairs, "ssim", lambda a, b: kornia_ssim(a, b, 11, 1.0, padding="same").mean((1, 2, 3)))


def no_clamp_of_the_saturation(monkeypatch):
    original = plg.parameters_of
    changed = lambda *arguments: replace(original(*arguments), clamp_first=torch.zeros(6, dtype=torch.bool))  # noqa: E731
    monkeypatch.setattr(plg, "parameters_of", changed)


def divided_by_what_it_was(monkeypatch):
    original = BoundaryRepulsion._move
    monkeypatch.setattr(BoundaryRepulsion, "_move", lambda self, *given: original(self, *given[:-1], given[-2]))


def grown_at_three_quarters(monkeypatch):
    """Of the share inside, where the code takes the signed mean."""
    original = brep_mi.attack_of
    monkeypatch.setattr(brep_mi, "attack_of", lambda changes: original({**changes, "search.grow_above": 0.5}))


def pushed_from_inside(monkeypatch):
    original = brep_mi.attack_of
    monkeypatch.setattr(brep_mi, "attack_of", lambda changes: original({**changes, "search.repulsion_only": False}))


def density_as_a_sum(monkeypatch):
    original = Actor.act_with_density

    def summed(self, states, noise):
        actions, density = original(self, states, noise)
        return actions, density * states.shape[2]

    monkeypatch.setattr(Actor, "act_with_density", summed)


def temperature_of_the_next_loss(monkeypatch):
    """Believed of what comes after at its newest, where the code takes that of the actor's last loss."""
    original = Agents._worth

    def worth(self, *given):
        self.believed = self.log_temperature.detach().exp()
        return original(self, *given)

    monkeypatch.setattr(Agents, "_worth", worth)


def margin_the_wrong_way_round(monkeypatch):
    original = Reward.__call__
    turned = lambda self, look: original(self, replace(look, answer=Answer(probs=1 - look.answer.probs)))  # noqa: E731
    monkeypatch.setattr(Reward, "__call__", turned)


def one_look(monkeypatch):
    original = plg.attack_of

    def attack_of(config):
        attack = original(config)
        attack.search.looks = 1
        return attack

    monkeypatch.setattr(plg, "attack_of", attack_of)


def a_norm_for_each_image(monkeypatch):
    monkeypatch.setattr(matching, "shares", lambda norms: norms)


def squares_of_features(monkeypatch):
    original = matching.distances
    monkeypatch.setattr(matching, "distances", lambda left, right, kind: original(left, right, "squared"))


def one_step_early(monkeypatch):
    original = lokt.LoktGan.update
    early = lambda self, optimizers, ask, step, *given: original(self, optimizers, ask, step + 1, *given)  # noqa: E731
    monkeypatch.setattr(lokt.LoktGan, "update", early)


def real_images_first(monkeypatch):
    original = lokt.LoktGan.discriminator_step
    swapped = lambda self, optimizer, real, fake, labels: original(self, optimizer, fake, real, labels)  # noqa: E731
    monkeypatch.setattr(lokt.LoktGan, "discriminator_step", swapped)


def genes_of_the_other(monkeypatch):
    original = c2f_mi.RecordedEvolution.draws

    def draws(self, *given):
        pairs, dice = original(self, *given)
        return pairs, 1 - dice

    monkeypatch.setattr(c2f_mi.RecordedEvolution, "draws", draws)


def fitness_as_shares(monkeypatch):
    shares = lambda self, children, parents: children.softmax(1) > parents.softmax(1)  # noqa: E731
    monkeypatch.setattr(c2f_mi.RecordedEvolution, "better", shares)


def sure_of_the_label_alone(monkeypatch):
    one_hot = lambda labels, noise: torch.zeros_like(noise).scatter(1, labels[:, None], 1.0)  # noqa: E731
    monkeypatch.setattr(coarse, "pseudo_predictions", one_hot)


def colours_as_they_are(monkeypatch):
    monkeypatch.setattr(crafter_attackers, "IMAGENET", (1.0,))


def squared_statistics(monkeypatch):
    monkeypatch.setattr(naturalness, "_gap", lambda told: (told.var - told.running_var).square().sum())


def no_pool(monkeypatch):
    monkeypatch.setattr(views.Pool, "__call__", lambda self, images, draws: images)


def other_way_round(monkeypatch):
    """The jitter's moves across and down exchanged."""
    original = views.Shift.__call__
    monkeypatch.setattr(
        views.Shift, "__call__", lambda self, images, draws: original(self, images, draws[:, [1, 0, 2]])
    )


def as_jensen_and_shannon(monkeypatch):
    def divergence(self, student, target):
        p, q = ((logits.float() / self.temperature).softmax(1) for logits in (student, target))
        middle = (p + q) / 2
        return sum((x * (x.log() - middle.log())).sum(1).mean() for x in (p, q)) / 2

    monkeypatch.setattr(naturalness.Agreement, "divergence", divergence)


def best_average_of_all(monkeypatch):
    """The label of the highest average, whether or not a whole completion was given it."""
    monkeypatch.setattr(voting.Ballot, "_elected", lambda self, given: self.votes.argmax(1))


def whole_votes_alone(monkeypatch):
    """Blanked views are asked about, and not counted."""
    original = voting.Voted._asked
    monkeypatch.setattr(voting.Voted, "_asked", lambda *given: (original(*given)[1],) * 2)


def part_in_the_middle(monkeypatch):
    monkeypatch.setattr(InpaintingGan, "realism_at", lambda self, images, places: self.realism(images))


def with_inversion(monkeypatch, change):
    """The attack of network inversion's presets, changed after it was composed."""
    original = inversion.attack_of

    def attack_of(preset):
        change(attack := original(preset))
        return attack

    monkeypatch.setattr(inversion, "attack_of", attack_of)


def softened_once(monkeypatch):
    with_inversion(monkeypatch, lambda attack: setattr(attack.terms["divergence"].loss, "form", "of_scores"))


def pairs_with_itself(monkeypatch):
    with_inversion(monkeypatch, lambda attack: setattr(attack.terms["cosine"].loss, "pairs", "all"))


def constant_variation(monkeypatch):
    with_inversion(monkeypatch, lambda attack: setattr(attack.terms["total_variation"], "growing", False))


def variation_from_one(monkeypatch):
    monkeypatch.setattr(inversion_terms.WeightedTerm, "at", lambda self, step: self.weight * (step + 1))


def without_affine_parameters(monkeypatch):
    original = inversion.apprentice_of

    def apprentice_of(*arguments):
        apprentice = original(*arguments)
        apprentice.theta = {name: value for name, value in apprentice.theta.items() if value.dim() > 1}
        return apprentice

    monkeypatch.setattr(inversion, "apprentice_of", apprentice_of)


def multipliers_as_they_are(monkeypatch):
    monkeypatch.setattr(Bank, "multipliers", lambda self: self.raw)


def matrix_of_the_class_wanted(monkeypatch):
    monkeypatch.setattr(UpsampledHotGenerator, "class_of_matrix", lambda self, wanted, processed: wanted.argmax(1))


def one_norm(monkeypatch):
    build, table = inversion.CLASSIFIERS["VisionTransformer"]
    table = {**table, "norm": "stages.features.1", "pre_head": "stages.features.2"}
    del table["transformer_encoder.norm"]
    changed = functools.partial(build, encoder_norm=False), table
    monkeypatch.setitem(inversion.CLASSIFIERS, "VisionTransformer", changed)


def no_smoothing(monkeypatch):
    with_inversion(monkeypatch, lambda attack: setattr(attack.terms["cross_entropy"].loss, "smoothing", 0.0))


@needs_recordings
@pytest.mark.parametrize(
    ("wrong", "file", "piece", "where"),
    [
        (softened_once, "attacks/network_inversion.npz", "network_inversion/terms", "R/kl_onehot"),
        (pairs_with_itself, "attacks/network_inversion.npz", "network_inversion/terms", "R/cosine"),
        (constant_variation, "attacks/network_inversion.npz", "network_inversion/train", "total_loss"),
        (variation_from_one, "attacks/network_inversion.npz", "network_inversion/train", "total_loss"),
        (multipliers_as_they_are, "attacks/network_inversion.npz", "network_inversion/train", "stationary_loss"),
        (without_affine_parameters, "attacks/network_inversion.npz", "network_inversion/stat", "R/stationary"),
        (no_smoothing, "attacks/network_inversion.npz", "network_inversion/train_V", "loss"),
        (matrix_of_the_class_wanted, "attacks/network_inversion.npz", "network_inversion/net", "matrix_class_used"),
        pytest.param(
            one_norm,
            "attacks/network_inversion.npz",
            "network_inversion/net",
            "VisionTransformer/state_json",
            marks=pytest.mark.slow,
        ),
        (a_norm_for_each_image, "attacks/crafter.npz", "crafter/attack", "inversion/z_final"),
        (squares_of_features, "attacks/crafter.npz", "crafter/attack", "amor_inversion/z_each_step"),
        (one_step_early, "attacks/lokt.npz", "lokt/target_queries", "target_queries"),
        (one_step_early, "attacks/lokt.npz", "lokt/loss", "loss"),
        (real_images_first, "attacks/lokt.npz", "lokt/final", "wd"),
        (genes_of_the_other, "attacks/c2f_mi.npz", "c2f_mi/de_bin2", "pop"),
        (fitness_as_shares, "attacks/c2f_mi.npz", "c2f_mi/de_mask_bin2", "fitness"),
        (sure_of_the_label_alone, "attacks/c2f_mi.npz", "c2f_mi/stage1", "latents"),
        (colours_as_they_are, "attacks/crafter.npz", "crafter/other", "adaptive_G_loss"),
        (no_look_ahead, "attacks/gmi.npz", "gmi_dmi_mnist", "z1"),
        (sum_for_mean, "attacks/gmi.npz", "gmi_dmi_mnist", "z1"),
        pytest.param(no_box, "attacks/gmi.npz", "gmi_dmi_mnist", "z1", marks=pytest.mark.slow),
        pytest.param(no_critic, "attacks/gmi.npz", "gmi_dmi_mnist", "z5", marks=pytest.mark.slow),
        pytest.param(mix_from_the_other_end, "attacks/gmi.npz", "gan_wgan", "loss_D", marks=pytest.mark.slow),
        pytest.param(weak_penalty, "attacks/gmi.npz", "gan_wgan", "loss_D", marks=pytest.mark.slow),
        (wide_kernel, "attacks/bido.npz", "bido_hsic_gaussian", "d_zx"),
        pytest.param(plain_estimator, "attacks/bido.npz", "bido_hsic_gaussian", "d_zy", marks=pytest.mark.slow),
        pytest.param(other_label_kernel, "attacks/bido.npz", "bido_hsic_gaussian", "d_zy", marks=pytest.mark.slow),
        (front_without_its_last, "attacks/tl_dmi.npz", "tl_dmi/facenet64", "freeze5/requires_grad"),
        (channels_from_the_end, "attacks/rolss.npz", "rolss/densenet_g8_2323_i16_bn2", "1x0.5x1x0.2/logits"),
        (the_other_branch, "attacks/rolss.npz", "rolss/vit_64_p16_l3_h4_d32_m64", "attention/0x1x1/logits"),
        (earlier_deviation, "attacks/vib_mid.npz", "vib_mid/cnn", "std"),
        (deviation_first, "attacks/vib_mid.npz", "vib_mid/cnn", "logits"),
        (divergence_of_a_mean, "attacks/vib_mid.npz", "vib_mid/cnn", "train_step/kl"),
        pytest.param(norm_of_the_neck, "attacks/vib_mid.npz", "vib_mid/vgg16_vib", "n_params", marks=pytest.mark.slow),
        (earlier_discriminators, "attacks/trap_mid.npz", "trap_mid/ce", "losses"),
        (triggers_learned_in_training_mode, "attacks/trap_mid.npz", "trap_mid/feat", "losses"),
        (weights_of_the_halves_swapped, "attacks/trap_mid.npz", "trap_mid/negls", "losses"),
        (opacity_of_the_image, "attacks/trap_mid.npz", "trap_mid/blend", "out"),
        (penalty_of_a_mean, "attacks/vmi.npz", "vmi_layeredminegan", "grad_norm1"),
        (halves_of_moments, "attacks/vmi.npz", "vmi_flow", "f64/logp"),
        (filled_groups, "attacks/bido.npz", "bido_sampler", "order_seed0"),
        (squared_norm, "attacks/lomma.npz", "lomma_iden", "ours/lam1.0/loss"),
        (no_students, "attacks/lomma.npz", "lomma_iden", "L_aug/lam1.0/loss"),
        (biased_deviation, "attacks/lomma.npz", "lomma_stats", "std"),
        (usual_temperature, "attacks/lomma.npz", "lomma_distill_tau2", "loss"),
        (wide_kernel_of_a_loss, "losses.npz", "bido", "coco/d_zx"),
        (loose_ball, "losses.npz", "poincare", "loss"),
        (ramped_smoothing, "losses.npz", "label_smoothing", "0.1/loss"),
        (flat_leak, "networks.npz", "gan32.DGWGAN32", "out0"),
        (no_cutoff, "stylegan2_cond_32.npz", "stylegan2", "w_psi07_cut4"),
        (no_noise, "stylegan2_cond_32.npz", "stylegan2", "img_const_psi05"),
        (mixed_term_added, "attacks/crafter.npz", "crafter/hyper", "i120_a0.001/hypergradient"),
        (mixed_term_added, "attacks/crafter.npz", "crafter/outer", "hypergradient"),
        (penalty_of_one_weight, "attacks/crafter.npz", "crafter/craftz", "critic_then_z_loss"),
        (squared_statistics, "attacks/deep_inversion.npz", "deep_inversion/terms", "r_feature_per_bn"),
        (no_pool, "attacks/deep_inversion.npz", "deep_inversion/lowres", "loss"),
        (other_way_round, "attacks/deep_inversion.npz", "deep_inversion/lowres", "x_after_last_step"),
        (as_jensen_and_shannon, "attacks/deep_inversion.npz", "deep_inversion/adi", "R_adi"),
        (best_average_of_all, "attacks/secret_gen.npz", "secret_gen/toyselect", "id_bank"),
        (whole_votes_alone, "attacks/secret_gen.npz", "secret_gen/toyselect", "id_bank"),
        pytest.param(part_in_the_middle, "attacks/secret_gen.npz", "secret_gen/attack", "loss", marks=pytest.mark.slow),
        (norm_per_image, "attacks/crafter.npz", "crafter/outer", "inner_attack_loss"),
        (threshold_of_the_lowest, "attacks/crafter.npz", "crafter/disco", "gate"),
        (divided_by_what_it_was, "attacks/brep_mi.npz", "brep_mi/ball_norep", "z "),
        (grown_at_three_quarters, "attacks/brep_mi.npz", "brep_mi/ball", "R"),
        (pushed_from_inside, "attacks/brep_mi.npz", "brep_mi/ball", "z"),
        (density_as_a_sum, "attacks/rlb_mi.npz", "rlb_mi/main", "losses"),
        (temperature_of_the_next_loss, "attacks/rlb_mi.npz", "rlb_mi/hot", "losses"),
        (margin_the_wrong_way_round, "attacks/rlb_mi.npz", "rlb_mi/alpha", "reward"),
        (earlier_of_equals, "attacks/plg_mi.npz", "plg_topn", "selected_ascending"),
        (padded_window, "attacks/crafter.npz", "crafter/other", "ssim_per_image"),
        (no_clamp_of_the_saturation, "attacks/plg_mi.npz", "plg_augment", "jitter_order_2310"),
        pytest.param(
            deviation_for_variance, "attacks/ked_mi.npz", "kedmi_ked_improved1", "mu1", marks=pytest.mark.slow
        ),
        pytest.param(eval_mode, "attacks/ked_mi.npz", "gan_ked_Ttrain", "running_mean", marks=pytest.mark.slow),
        pytest.param(one_batch_for_all, "attacks/ked_mi.npz", "gan_ked_Teval", "loss_D", marks=pytest.mark.slow),
        pytest.param(one_look, "attacks/plg_mi.npz", "plg_stage2_identity_margin", "loss", marks=pytest.mark.slow),
    ],
)
def test_a_plausible_mistake_is_seen(monkeypatch, wrong, file, piece, where):
    wrong(monkeypatch)
    assert any(where in line for line in outcomes(file, piece)["FAIL"])
