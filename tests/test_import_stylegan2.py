"""Published StyleGAN2 files: what is imported is bit for bit what was written, and nothing of a file is ever run.

The pickles are written here as `torch_utils.persistence` writes them, from stand-ins for NVIDIA's modules.
"""

import copyreg
import hashlib
import io
import json
import math
import os
import pickle
import random
import sys
import types
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import conftest
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from midefense.commands.imports import run
from midefense.priors.stylegan2.closed_pickle import Named, Plain
from midefense.priors.stylegan2.critic import Discriminator
from midefense.priors.stylegan2.generator import Generator, StyleGan2Config
from midefense.priors.stylegan2.importer import import_file, read_imported
from midefense.types import Refused

REFERENCE = Path(conftest.ROOT).parent / "shared" / "reference"
TINY = StyleGan2Config(
    resolution=8,
    z_dim=5,
    w_dim=6,
    channel_base=32,
    channel_max=8,
    mapping_layers=2,
    mapping_rate=0.02,
    conv_clamp=200.0,
    minibatch_group=2,
)
LABELS = replace(TINY, label_size=3, critic_kind="orig", label_mapping_layers=3)
UNBOUNDED = replace(TINY, conv_clamp=None)
LINEAR = ("affine", "embed", "out", "skip")


class EasyDict(dict):
    """As NVIDIA's: keys are attributes."""

    def __getattr__(self, name):
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __reduce__(self):
        return copyreg.__newobj__, (EasyDict,), {}, None, iter(self.items())  # Python 3.7 wrote the empty state too


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a name of the pickle was resolved")


STANDING_IN = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}
for module_name, stand_in in STANDING_IN.items():
    stand_in.__module__ = module_name


class Persistent:
    """A module as `torch_utils.persistence` pickles it."""

    def __init__(self, **meta):
        self.meta = meta

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


class Call:
    """Is pickled as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture(autouse=True)
def nvidia(monkeypatch):
    """Stand-ins for NVIDIA's packages, without which their names could not be pickled."""
    for name, stand_in in STANDING_IN.items():
        module = types.ModuleType(name)
        setattr(module, stand_in.__name__, stand_in)
        monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def sentinel(tmp_path):
    """A file that only code of a pickle would make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


@pytest.fixture
def bring(tmp_path):
    """`bring(CONTENT)`: what `read_imported` gives of these bytes, imported."""

    def bring_in(content, name="tiny.pkl", **options):
        file, out = tmp_path / name, tmp_path / "store" / "tiny.safetensors"
        file.write_bytes(content)
        try:
            import_file(file, out, **options)
        except BaseException:
            assert not out.exists()
            raise
        return read_imported(out)

    return bring_in


def networks(config):
    """A generator and a critic, every tensor of which is its own."""
    rng = torch.Generator().manual_seed(1)
    pair = Generator(config), Discriminator(config)
    for name, tensor in [entry for network in pair for entry in network.state_dict().items()]:
        if not name.endswith("resample_filter"):
            tensor.copy_(torch.randn(tensor.shape, generator=rng))
    return pair


def attributes(path, config):
    """What NVIDIA's layers keep beside their tensors, as far as it is read, and a number of numpy's."""
    last = path.rpartition(".")[2]
    kept = {"weight_gain": np.float64(0.25), "activation": "linear" if last in LINEAR else "lrelu"}
    if last.startswith(("conv", "torgb", "fromrgb", "skip")):
        kept["conv_clamp"] = None if last == "skip" else config.conv_clamp
    if last.startswith("fc"):
        kept["bias_gain"] = config.mapping_rate if path.startswith("mapping") else 1
    return kept


def persistent(module, config, source, path="", **own):
    """The pickled form of a network of ours, every child of it persistent too."""
    children = {
        name: persistent(child, config, source, f"{path}.{name}".strip(".")) for name, child in module.named_children()
    }
    if path == "b4":
        children["mbstd"] = persistent(nn.Module(), config, source, "b4.mbstd", group_size=config.minibatch_group)
    state = {
        "training": False,
        "_parameters": OrderedDict(module._parameters, absent=None),
        "_buffers": OrderedDict(module._buffers, passing=torch.zeros(3)),
        "_non_persistent_buffers_set": {"passing"},
        "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(children, none=None),
        **attributes(path, config),
        **own,
        "_init_args": (),
        "_init_kwargs": {"synthesis_kwargs": EasyDict(channel_base=config.channel_base)},
    }
    return Persistent(type="class", version=6, module_src=source, class_name=type(module).__name__, state=state)


def held(config, sentinel):
    """What an official file holds, before it is pickled; the source that comes with it would make the sentinel."""
    source = f"open({str(sentinel)!r}, 'w').close()"
    generator, critic = (persistent(network, config, source) for network in networks(config))
    return {"G": generator, "D": critic, "G_ema": generator, "training_set_kwargs": EasyDict(), "augment_pipe": None}


def same(left, right):
    """Whether two state dicts have the same names in the same order, and tensors equal bit for bit."""
    return list(left) == list(right) and all(torch.equal(tensor, right[name]) for name, tensor in left.items())


@pytest.mark.parametrize("config", [TINY, LABELS, UNBOUNDED], ids=["resnet", "labels", "unbounded"])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_is_imported_bit_for_bit(bring, sentinel, config, protocol):
    got, generator, critic, metadata = bring(pickle.dumps(held(config, sentinel), protocol))
    original = networks(config)
    assert got == config
    assert same(generator, original[0].state_dict()) and same(critic, original[1].state_dict())
    assert metadata["source"] == "tiny.pkl" and metadata["format"] == "midefense-stylegan2-1"
    assert json.loads(metadata["config"]) == asdict(config) and len(metadata["source_sha256"]) == 64
    Generator(got).load_state_dict(generator)
    Discriminator(got).load_state_dict(critic)


def test_the_names_of_numpy_1(bring, sentinel):
    content = pickle.dumps(held(TINY, sentinel), 3)
    older = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in older
    assert bring(older)[0] == TINY


def test_strides_and_offsets_are_those_of_the_pickle(bring, sentinel):
    """Files of half precision keep weights with the channels last."""
    generator, critic = networks(TINY)
    with torch.no_grad():
        for network in (generator, critic):
            for module in network.modules():
                if getattr(module, "weight", torch.empty(0)).ndim == 4:
                    module.weight.data = module.weight.data.to(memory_format=torch.channels_last)
        generator.synthesis.b4.const.data = torch.stack([torch.zeros(8, 4, 4), generator.synthesis.b4.const.data])[1]
    assert generator.synthesis.b4.const.storage_offset() == 128
    stored = [persistent(network, TINY, "") for network in (generator, critic)]
    _, *states, _ = bring(pickle.dumps({"G_ema": stored[0], "D": stored[1]}))
    assert same(states[0], networks(TINY)[0].state_dict()) and same(states[1], networks(TINY)[1].state_dict())


def test_a_pickle_without_a_critic(bring, sentinel):
    assert bring(pickle.dumps({**held(TINY, sentinel), "D": None}))[2] is None


def test_the_state_dict_that_if_gmi_distributes(bring):
    """What no shape tells is then that of the published files, unless the caller tells it."""
    content = io.BytesIO()
    generator = networks(TINY)[0].state_dict()
    torch.save({"state_dict": generator}, content)
    config, got, critic, _ = bring(content.getvalue(), "tiny.pth")
    assert config == replace(TINY, mapping_rate=0.01, conv_clamp=256.0, minibatch_group=4)
    assert same(got, generator) and critic is None


@pytest.mark.parametrize("name", ["uncond", "cond"])
def test_names_and_shapes_of_the_original_implementation(bring, name):
    file = REFERENCE / f"stylegan2_{name}_32.npz"
    if not file.exists():
        pytest.skip(f"needs {file}, which is not part of the repository")
    stored = np.load(file)
    state = {key[6:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("state/")}
    config, generator, _, _ = bring(safetensors.torch.save(state), f"{name}.safetensors")
    said = json.loads(stored["config_json"].tobytes())
    sizes = (config.resolution, config.z_dim, config.w_dim, config.label_size, config.mapping_layers)
    assert sizes == (
        *(said[key] for key in ("img_resolution", "z_dim", "w_dim", "c_dim")),
        said["mapping_kwargs"]["num_layers"],
    )
    assert {"channel_base": config.channel_base, "channel_max": config.channel_max}.items() <= said[
        "synthesis_kwargs"
    ].items()
    assert generator.keys() == state.keys() and all(torch.equal(generator[key], state[key]) for key in state)


def stylegan3(source="class SynthesisInput(torch.nn.Module): ...", **kept):
    """What StyleGAN3's files hold: modules as those of StyleGAN2, other names, and arrays of numpy among them."""

    def module(name, **state):
        empty = {"_parameters": {}, "_buffers": {}, "_non_persistent_buffers_set": set(), "_modules": {}}
        return Persistent(type="class", version=6, module_src=source, class_name=name, state={**empty, **state})

    entrance = module("SynthesisInput", _buffers={"freqs": torch.ones(4, 2)}, **kept)
    synthesis = module("SynthesisNetwork", _modules={"input": entrance})
    generator = module("Generator", _modules={"synthesis": synthesis})
    return pickle.dumps({"G": generator, "D": None, "G_ema": generator})


@pytest.mark.parametrize(
    ("made", "cut", "words"),
    [
        ({"size": np.array([36, 36])}, 0, "a network of StyleGAN3, which is not read here; try a StyleGAN2 of"),
        ({}, 0, "expected the names of StyleGAN2-ADA, got those of StyleGAN3 .synthesis.input.freqs, "),
        ({}, 9, "a network of StyleGAN3, which is not read here"),
        ({"source": "class TriPlaneGenerator", "size": np.array([3])}, 0, "a network of EG3D, which is not read here"),
        ({"source": "class SomethingElse", "size": np.array([3])}, 0, "asks for numpy.*_reconstruct; try downloading"),
    ],
    ids=["StyleGAN3", "without arrays", "cut short", "EG3D", "unknown"],
)
def test_pickles_of_other_generators_are_called_by_their_name(bring, sentinel, made, cut, words):
    content = stylegan3(**made)
    if made.get("source") == "class SomethingElse":
        content = content.replace(b"SynthesisInput", b"SomethingElse_")
    with pytest.raises(Refused, match=words):
        bring(content[: len(content) - cut])


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["synthesis.input.freqs", "synthesis.L0_36_512.weight"], "StyleGAN3 "),
        (["style.1.weight", "to_rgb1.bias"], "StyleGAN2 as rosinality writes it"),
        (["progression.0.conv1.weight"], "StyleGAN "),
        (["backbone.synthesis.b4.const"], "EG3D "),
    ],
)
def test_states_of_other_generators_are_called_by_their_name(bring, names, family):
    with pytest.raises(Refused, match=f"got those of {family}.*not read here; try a StyleGAN2 of stylegan2-ada"):
        bring(safetensors.torch.save({name: torch.ones(1) for name in names}), "net.safetensors")


def test_what_a_caller_tells_replaces_what_a_file_says(bring, sentinel):
    config = bring(pickle.dumps(held(TINY, sentinel)), told={"conv_clamp": 100, "mapping_rate": 0.5})[0]
    assert config == replace(TINY, conv_clamp=100.0, mapping_rate=0.5)


def storage(values=4):
    """The bytes of a storage, as they stand in a pickle."""
    return torch.ones(values).__reduce_ex__(2)[1][0].__reduce__()[1][0]


def tensor(offset=0, size=(4,), stride=(1,), content=None):
    """A call that makes a tensor of a storage of four numbers."""
    stored = Call(torch.storage._load_from_bytes, storage() if content is None else content)
    return Call(torch._utils._rebuild_tensor_v2, stored, offset, size, stride, False, OrderedDict())


def evil(sentinel):
    """Calls and objects that no network pickle holds, and a word of what is said of each."""
    touch = f"touch {sentinel}"
    run = pickle.dumps(Call(os.system, touch), 2)
    load = torch.storage._load_from_bytes
    return {
        "system": (Call(os.system, touch), "posix.system"),
        "eval": (Call(eval, f"open({str(sentinel)!r}, 'w')"), "builtins.eval"),
        "exec": (Call(exec, f"open({str(sentinel)!r}, 'w')"), "builtins.exec"),
        "getattr": (Call(getattr, {}, "get"), "builtins.getattr"),
        "a class": (Path("x"), "pathlib"),
        "an array": (np.ones(3), "multiarray._reconstruct"),
        "a double": (torch.ones(3, dtype=torch.float64), "torch.DoubleStorage"),
        "nested": (Call(load, run), "system"),
        "behind the header": (Call(load, storage()[:-24] + run), "changed|layout|holds"),
        "bytes": (Call(load, b"no pickle"), "changed"),
        "text": (Call(load, "no bytes"), "changed"),
        "cut": (Call(load, storage()[:-1]), "storage of another layout"),
        "too many": (Call(load, storage() + b"\0" * 4), "storage of another layout"),
        "beyond": (tensor(size=(5,)), "leaves its storage"),
        "behind": (tensor(offset=1), "leaves its storage"),
        "before": (tensor(offset=-1), "leaves its storage"),
        "backwards": (tensor(stride=(-1,)), "leaves its storage"),
        "repeated": (tensor(size=(2**40,), stride=(0,)), "leaves its storage"),
        "wide": (tensor(size=(1,), stride=(2**70,)), "leaves its storage"),
        "empty": (tensor(size=(0,)), "leaves its storage"),
        "uneven": (tensor(stride=(1, 1)), "another layout"),
        "no number": (tensor(offset=0.5), "another layout"),
        "a bool": (tensor(offset=True), "another layout"),
        "deep": (tensor(size=(1,) * 9, stride=(1,) * 9), "another layout"),
        "no storage": (Call(torch._utils._rebuild_tensor_v2, b"", 0, (), (), False, None), "another layout"),
        "no meta": (Call(_reconstruct_persistent_obj, [1]), "changed"),
        "no class": (Call(_reconstruct_persistent_obj, {"type": "function"}), "no module"),
        "arguments": (Call(OrderedDict, [("a", 1)]), "changed"),
        "big-endian": (np.dtype(">f8"), "byte order"),
        "a text of numpy": (np.dtype("S4"), "changed"),
    }


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("case", evil(Path("nowhere")))
def test_nothing_but_networks_is_read(bring, sentinel, case, protocol):
    thing, word = evil(sentinel)[case]
    with pytest.raises(Refused, match=f"got .*tiny.pkl, which holds .*({word})"):
        bring(pickle.dumps({**held(TINY, sentinel), "augment_pipe": thing}, protocol))


# Opcodes by hand: what a name stands for is asked to take attributes or a state, or to be more than a name.
EASY, SETTER = b"cdnnlib.util\nEasyDict\n", b"cbuiltins\nset\n"
BY_HAND = {
    "attributes of a class": EASY + b"N}X\x08\0\0\0__init__" + SETTER + b"s\x86b.",
    "state of a class": EASY + b"}X\x01\0\0\0aNsb.",
    "attributes of an object": EASY + b")\x81N}X\x09\0\0\0__class__" + EASY + b"s\x86b.",
    "state of an object": EASY + b")\x81}X\x01\0\0\0aNsb.",
    "attributes of a function": SETTER + b"N}X\x04\0\0\0make" + EASY + b"s\x86b.",
    "state of a function": SETTER + b"}X\x04\0\0\0makeNsb.",
    "a class with arguments": EASY + b"K\x01\x85\x81.",
    "a function as a class": SETTER + b")\x81.",
    "state of a tuple": b")N}X\x01\0\0\0aNs\x86b.",
    "an attribute of a name": b"X\x05\0\0\0torchX\x10\0\0\0_utils.os.system\x93.",
    "an old call": b"(cos\nsystem\no.",
    "an older call": b"(S'true'\nios\nsystem\n.",
    "an extension": b"\x82\x01.",
    "a persistent id": b"X\x01\0\0\0aQ.",
    "a persistent text": b"Pa\n.",
    "a far place of the memo": b"Nr\xff\xff\xff\x7f.",
    "a place that is empty": b"h\x07.",
    "more bytes than there are": b"\x8e\0\0\0\0\0\0\0\x7f.",
    "more text than there is": b"X\xff\xff\xff\x7f.",
    "a frame that is too long": b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",
    "an empty stack": b".",
    "no network": b"N.",
    "no dictionary": b"]K\x01a.",
    "a dictionary of others": b"}X\x05\0\0\0G_emaK\x01s.",
    "nothing": b"",
}


@pytest.mark.parametrize("case", BY_HAND)
def test_opcodes_written_by_hand(bring, case):
    before = set(vars(Plain)), set(vars(Named))
    with pytest.raises(Refused, match=r"got .*tiny.pkl, which holds"):
        bring(b"\x80\x04" + BY_HAND[case])
    assert before == (set(vars(Plain)), set(vars(Named)))


def test_names_are_refused_by_name(bring):
    with pytest.raises(Refused, match=r"which holds a pickle that asks for posix\.system; try"):
        bring(pickle.dumps({"G_ema": Call(os.system, "true")}))
    with pytest.raises(Refused, match=r"networks for TensorFlow .*legacy\.py"):
        bring(b"\x80\x03cdnnlib.tflib.network\nNetwork\n)\x81.")


def test_modules_within_themselves(bring):
    generator = persistent(networks(TINY)[0], TINY, "")
    again = persistent(nn.Module(), TINY, "")
    again.meta["state"]["_modules"]["one"] = generator.meta["state"]["_modules"]["mapping"]
    again.meta["state"]["_modules"]["two"] = again.meta["state"]["_modules"]["one"]
    with pytest.raises(Refused, match="two places"):
        bring(pickle.dumps({"G_ema": again}))
    for depth in range(12):
        again = persistent(nn.Module(), TINY, "", _modules=OrderedDict({f"a{depth}": again if depth else generator}))
    with pytest.raises(Refused, match="too deep"):
        bring(pickle.dumps({"G_ema": again}))


def test_one_storage_cannot_stand_for_many(bring):
    """Tensors that share a storage would take more memory than the file has bytes."""
    stored = Call(torch.storage._load_from_bytes, storage(10_000))
    whole = [Call(torch._utils._rebuild_tensor_v2, stored, 0, (10_000,), (1,), False, None) for _ in range(9)]
    module = persistent(nn.Module(), TINY, "", _parameters={f"a{index}": one for index, one in enumerate(whole)})
    with pytest.raises(Refused, match="larger than the file"):
        bring(pickle.dumps({"G_ema": module}))


def test_every_truncation_is_refused(bring, sentinel):
    content = pickle.dumps(held(TINY, sentinel), 4)
    places = random.Random(0).sample(range(len(content)), 40)
    for place in [0, 1, 2, 30, *places, *range(len(content) - 20, len(content))]:
        with pytest.raises(Refused):
            bring(content[:place])


def test_changed_bits_are_refused_or_read(bring, sentinel, tmp_path):
    """A bit of a number changes that number (only a hash shows it); a bit of anything else is refused, in words."""
    content = pickle.dumps(held(TINY, sentinel), 3)
    rng, refused = random.Random(0), 0
    for _ in range(40):
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        changed = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        try:
            bring(changed)
            (tmp_path / "store" / "tiny.safetensors").unlink()
        except Refused:
            refused += 1
    assert 5 <= refused <= 35


CHANGES = {  # of a generator and its critic, and what is said of them
    "not a number": (lambda g, d: g.synthesis.b8.conv1.weight.data.fill_(math.nan), "conv1.weight: expected finite"),
    "infinite": (lambda g, d: d.b4.out.bias.data.fill_(math.inf), "critic.b4.out.bias: expected finite"),
    "another filter": (
        lambda g, d: g.synthesis.b8.resample_filter.fill_(0.1),
        r"expected the filter of \[1, 3, 3, 1\]",
    ),
    "no noise": (
        lambda g, d: delattr(g.synthesis.b8.conv1, "noise_const"),
        "1 missing .synthesis.b8.conv1.noise_const",
    ),
    "more": (lambda g, d: d.b8.register_buffer("more", torch.zeros(1)), "1 unexpected .b8.more"),
    "longer": (lambda g, d: setattr(d.b4.fc, "bias", nn.Parameter(torch.zeros(9))), "b4.fc.bias .9. instead of .8."),
    "no average": (lambda g, d: delattr(g.mapping, "w_avg"), "expected the names of StyleGAN2-ADA"),
    "a scalar": (lambda g, d: setattr(g.mapping.fc0, "weight", nn.Parameter(torch.zeros(()))), "with 2 axes or more"),
    "a block less": (lambda g, d: delattr(g.synthesis, "b4"), "13 missing .synthesis.b4.const"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_other_tensors_are_refused(bring, case):
    change, words = CHANGES[case]
    pair = networks(TINY)
    change(*pair)
    generator, critic = (persistent(network, TINY, "") for network in pair)
    with pytest.raises(Refused, match=words):
        bring(pickle.dumps({"G_ema": generator, "D": critic}))


def test_other_attributes_are_refused(bring):
    generator, critic = (persistent(network, TINY, "") for network in networks(TINY))
    mapping = generator.meta["state"]["_modules"]["mapping"].meta["state"]["_modules"]["fc1"].meta["state"]
    epilogue = critic.meta["state"]["_modules"]["b4"].meta["state"]["_modules"]
    for state, key, value, words in [
        (mapping, "activation", "relu", "mapping.fc1: expected the activation lrelu"),
        (mapping, "bias_gain", 0.5, "mapping_rate: expected one number in all layers"),
        (mapping, "bias_gain", [0.02], "mapping_rate: expected one number"),
        (epilogue["conv"].meta["state"], "conv_clamp", None, "conv_clamp: expected one number in all layers"),
        (epilogue["mbstd"].meta["state"], "group_size", None, "minibatch_group: expected a finite int, got None"),
    ]:
        kept = state[key]
        state[key] = value
        with pytest.raises(Refused, match=words):
            bring(pickle.dumps({"G_ema": generator, "D": critic}))
        state[key] = kept
    del mapping["bias_gain"]
    with pytest.raises(Refused, match="try --config mapping_rate=NUMBER"):
        bring(pickle.dumps({"G_ema": generator}))
    assert bring(pickle.dumps({"G_ema": generator}), told={"mapping_rate": 0.02})[0] == replace(TINY, minibatch_group=4)


def test_the_official_file_is_known_by_its_hash(bring, sentinel):
    content = pickle.dumps(held(TINY, sentinel))
    with pytest.raises(Refused, match=f"official ffhq.pkl, 381624121 bytes .*got {len(content)} bytes .*--sha256"):
        bring(content, "ffhq.pkl")
    with pytest.raises(Refused, match="--sha256: expected ffhq.pkl to have 00"):
        bring(content, "ffhq.pkl", sha256="00")
    digest = hashlib.sha256(content).hexdigest()
    assert bring(content, "ffhq.pkl", sha256=digest.upper())[3]["source_sha256"] == digest


def test_the_file_is_there_whole_or_not_at_all(bring, sentinel, tmp_path, monkeypatch):
    def die(*arguments):
        raise OSError("the disk is full")

    for module, function in ((os, "replace"), (os, "fsync"), (safetensors.torch, "save")):
        with monkeypatch.context() as dying, pytest.raises(OSError, match="the disk is full"):
            dying.setattr(module, function, die)
            bring(pickle.dumps(held(TINY, sentinel)))
    out = tmp_path / "store" / "tiny.safetensors"
    bring(pickle.dumps(held(TINY, sentinel)))
    first = out.read_bytes()
    import_file(tmp_path / "tiny.pkl", out)  # the same again
    assert out.read_bytes() == first
    with pytest.raises(Refused, match="holds something else"):
        import_file(tmp_path / "tiny.pkl", out, told={"conv_clamp": 1})
    assert out.read_bytes() == first


def test_read_imported_says_what_is_wrong(tmp_path):
    file = tmp_path / "tiny.safetensors"
    command = r"midefense import FILE.pkl --as stylegan2"
    with pytest.raises(Refused, match=f"got no file .*{command}"):
        read_imported(file)
    notes = {"format": "midefense-stylegan2-1", "config": json.dumps(asdict(TINY))}
    weight = {"generator.mapping.w_avg": torch.zeros(6)}
    for content, words in [
        (b"no safetensors", "another file"),
        (safetensors.torch.save(weight), "another file"),
        (safetensors.torch.save(weight, {"stylegan2": "no JSON"}), "another file"),
        (safetensors.torch.save(weight, {"stylegan2": "[]"}), "another file"),
        (safetensors.torch.save(weight, {"stylegan2": json.dumps({**notes, "config": "5"})}), "another file"),
        (safetensors.torch.save(weight, {"stylegan2": json.dumps({**notes, "format": "x"})}), "got x in"),
        (safetensors.torch.save({"other.x": weight.popitem()[1]}, {"stylegan2": json.dumps(notes)}), "got other in"),
    ]:
        file.write_bytes(content)
        with pytest.raises(Refused, match=f"{words}.*{command}"):
            read_imported(file)
    file.write_bytes(safetensors.torch.save({"generator.x": torch.zeros(6)}, {"stylegan2": json.dumps(notes)}))
    with pytest.raises(Refused, match="1 unexpected"):
        read_imported(file)


def test_the_command(sentinel, tmp_path, capsys):
    file, store = tmp_path / "tiny.pkl", tmp_path / "store"
    file.write_bytes(pickle.dumps(held(TINY, sentinel)))
    words = [str(file), "--store", str(store)]
    assert (
        run(
            [
                *words,
                "--as",
                "stylegan2",
                "--config",
                "conv_clamp=100",
                '{"mapping_rate": 0.5, "critic_kind": "resnet"}',
            ]
        )
        == 0
    )
    out = store / "stylegan2" / "tiny.safetensors"
    assert f"prior.weights={out}" in capsys.readouterr().out
    assert read_imported(out)[0] == replace(TINY, conv_clamp=100.0, mapping_rate=0.5)
    for wrong, said in [
        ("conv_clamp", "expected KEY=VALUE or JSON, got conv_clamp"),
        ("conv_clamp=much", "expected KEY=VALUE or JSON, got conv_clamp=much"),
        ("conv_clam=1", "Did you mean 'conv_clamp'"),
        ("mapping_layers=2.5", "mapping_layers: expected a finite int, got 2.5"),
        ("critic_kind=orig", "2 unexpected"),
    ]:
        assert run([*words, "--as", "stylegan2", "--out", str(tmp_path / "other"), "--config", wrong]) == 1
        assert said in capsys.readouterr().err
    assert run([str(tmp_path / "absent.pkl"), "--as", "stylegan2"]) == 1 and "got no file" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
