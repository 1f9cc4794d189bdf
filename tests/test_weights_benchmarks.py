"""benchmarks/stationarity.py and benchmarks/network_inversion.py, small: every way gives the same numbers, every row of
the table can be run, and the page says what was measured and what was not."""

import importlib
from dataclasses import replace

import pytest
from conftest import ROOT, plan_for

BENCHMARKS = str(ROOT / "benchmarks")


@pytest.fixture
def script(monkeypatch):
    """`script(name)`: a script of the benchmarks, which may import its neighbours."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


# Stationarity


def test_every_way_gives_the_same_numbers_and_others_are_seen(script):
    stationarity = script("stationarity")
    setup = stationarity.Setup(images=130, side=6, widths=(8, 6), classes=3)
    found = {name: stationarity.measure(setup, chunk) for name, chunk in stationarity.CHUNKS.items()}
    stationarity.require_equal(found)
    page = stationarity.report(setup, found)
    assert "130 images of 6 px" in page and "(362 weights)" in page
    assert all(f"| {name} |" in page for name in stationarity.CHUNKS)
    loop = found["image by image"]
    value, *others = loop.results
    wrong = {**found, "image by image": replace(loop, results=(value * (1 + 1e-6), *others))}
    with pytest.raises(AssertionError, match="image by image gives"):
        stationarity.require_equal(wrong)


# The table of training images from weights


def test_every_row_can_be_run(script, tmp_path):
    table = script("network_inversion")
    place = tmp_path / "packs"
    setups = [table.Setup("MNIST", *row) for row in zip(table.NETWORKS, (100, 600, 100), strict=True)]
    setups += [replace(table.ABLATED, attack=attack) for attack in table.ATTACKS if attack != table.KKT]
    for setup in setups:
        words = [word.format(packs=place) for word in setup.words()]
        plan = plan_for("evaluate", *words, "tracking=none", "compute=cpu", "seed=1", store=tmp_path / "store")
        assert plan.target.dataset.arguments["images_per_class"] * table.CLASSES == setup.images
        assert plan.attack.arguments["candidates"] * table.CLASSES == 2 * setup.images
    assert len({setup.key(seed) for setup in table._all() for seed in table.SEEDS}) == 72


def cell(gain, width=0.01):
    ends = [gain, gain - width, gain + width]
    return {"matched_ssim_gain/train": ends, "matched_ssim/train": [0.5], "seconds/target": [3.0], "weights": [30.0]}


def test_the_page_says_what_was_measured_and_what_the_claims_are_worth(script):
    table = script("network_inversion")
    setups = {network: table.Setup("MNIST", network, 100) for network in table.NETWORKS}
    gains = {table.MLP: (0.05, 0.06), table.CNN: (0.01, 0.02), table.VIT: (0.055,)}
    cells = {setups[network].key(seed): cell(gain) for network, runs in gains.items() for seed, gain in enumerate(runs)}
    page = table.report(cells, threads=1, absent=["SVHN"])
    lines = page.splitlines()
    assert "Not measured, as no pack holds it: SVHN." in lines
    rows = [line for line in lines if line.startswith("| MNIST")]
    assert rows[0].startswith("| MNIST | MLP | 2 |") and "0.055 ± 0.064" in rows[0], "a mean over two seeds"
    assert "0.055 (0.045 to 0.065)" in rows[2], "an interval over classes, of one seed"
    assert rows[3].startswith("| MNIST | MLP | 0 | not measured |")
    of_one = "in 1 of 1 setups measured, with intervals over classes that part, in every seed, in 1."
    assert f"- MLP against CNN: its gain is the larger one {of_one}" in lines
    assert f"- MLP against ViT: its gain is the larger one {of_one.replace('1', '0').replace('of 0', 'of 1')}" in lines
    ablated = [line for line in lines if line.startswith("| generator, ")]
    assert len(ablated) == 3 and all("| 0 | not measured |" in line for line in ablated)
    other = table.Setup("MNIST", table.MLP, 600)
    assert table.runs(other, cells) == [] and len(table.runs(setups[table.MLP], cells)) == 2


@pytest.mark.parametrize(("of_cnn", "parted"), [((0.01, 0.02, 0.03), 1), ((0.01, 0.02, 0.09), 0)])
def test_a_claim_over_three_seeds_goes_by_the_intervals_over_seeds(script, of_cnn, parted):
    """Means .08 and .02 with half-widths of .025; a seed that tells another story widens its interval."""
    table = script("network_inversion")
    gains = {table.MLP: (0.07, 0.08, 0.09), table.CNN: of_cnn}
    setups = {network: table.Setup("MNIST", network, 100) for network in gains}
    cells = {setups[network].key(seed): cell(gain) for network, runs in gains.items() for seed, gain in enumerate(runs)}
    assert f"; of 1 setups with three seeds, intervals over seeds part in {parted}." in table.claim(cells)[0]
    low, high = table.between_seeds([cell(gain) for gain in gains[table.MLP]])
    assert low == pytest.approx(0.08 - 4.303 * 0.01 / 3**0.5) and high == pytest.approx(0.16 - low)


def test_runs_are_kept_by_their_words(script, tmp_path):
    table = script("network_inversion")
    setup = table.Setup("CIFAR-10", table.VIT, 600)
    assert table.recorded(tmp_path) == {}
    assert table.keep(tmp_path, setup.key(0), cell(0.1)) == {setup.key(0): cell(0.1)}
    assert table.recorded(tmp_path) == table.keep(tmp_path, setup.key(0), cell(0.1))
    assert "attack.stationarity.gate=null" in setup.key(0)
