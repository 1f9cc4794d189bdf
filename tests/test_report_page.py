"""The report's page in a headless browser: 48 setups over three seeds, found, sorted, compared, read on a phone."""

import itertools
import os

import numpy as np
import pytest
import torch
from report_rows import document, put

from midefense.report import build, read_rows
from midefense.store.artefacts import Draft
from midefense.store.store import Store

DEFENSES = ("none", "negative_label_smoothing", "random_erasing", "bido_hsic", "boundary_erasing", "tl_dmi")
ATTACKS = ("gmi", "if_gmi_facescrub_metfaces")
ARCHITECTURES = ("resnet152", "network_inversion_cnn")
PRIORS = ("stylegan2_celebahq256", "gmi_gan")
SETUPS = len(DEFENSES) * len(ATTACKS) * len(ARCHITECTURES) * len(PRIORS)
SEEDS = 3
WIDE, NARROW = 1400, 390
PICTURES = ("data:image/png;base64,",)
METRICS = ("precision", "recall", "density", "coverage", "feature_distance", "attack_accuracy_top5")
STAGES = ("initial", "optimised", "stage01", "stage02")


def content(number, seed, setup, recovered):
    """A result as evaluate writes it, at full width: every leading number with its interval, and 24 more."""
    defense, attack, architecture, prior = setup
    rng = np.random.default_rng(100 * number + seed)
    names = {"defense": defense, "attack": attack, "architecture": architecture, "prior": prior}
    said = {"dataset": "synthetic_faces", "setup": f"h{number}", "baseline": f"b{number % 8}", "classes": 10}
    labels = {str(label): f"Person {label} of the Long-Named" for label in range(10)}
    found = document(seed, float(rng.uniform(0.2, 0.9)), **names, **said, class_names=labels)
    metrics = found["metrics"]

    def measured(low, high, leaks):
        value = float(rng.uniform(low, high))
        by_class = {str(label): float(rng.uniform(low, high)) for label in range(10)}
        return {
            "value": value,
            "low": 0.8 * value,
            "high": 1.2 * value,
            "n": 200,
            "per_class": by_class,
            "higher_leaks": leaks,
        }

    metrics["target_class_confidence/main"] = measured(0.1, 0.9, True)
    metrics["knn_distance/main"] = measured(500, 1500, False)
    metrics["fid/main"] = measured(700, 900, False)
    metrics["kid/main"] = measured(20_000, 90_000, False)
    for name in METRICS:
        metrics[f"{name}/main"] = measured(0, 1, True)
        metrics |= {f"{name}@{stage}/main": measured(0, 1, True) for stage in STAGES[:3]}
    metrics["cost/queries_per_target_mean"]["value"] = 1_250_000.0
    metrics["cost/seconds"]["value"] = 41_234.5 + number
    metrics["utility/test_accuracy_top1"]["value"] = 0.9 + 0.002 * number
    found["anchors"]["real"] |= {"fid/main": 11.4, "kid/main": -2380.0, "knn_distance/main": 59.7}
    found["anchors"]["prior"] |= {"fid/main": 1415.5, "kid/main": 161_197.0, "knn_distance/main": 1907.0}
    found["row"]["ids"]["recovered"] = recovered
    return found


def recipe(number, seed):
    """A recipe of an attack, as long as a real one; `steps` tells setups apart."""
    rest = {f"option_{n}": n / 7 for n in range(60)}
    search = {"_target_": "midefense.attacks.search.gradient.Gradient", "revision": 1, "steps": 100 + number, **rest}
    return {"kind": "recovered", "attack": {"search": search, "budget": None}, "seed": seed, "labels": list(range(10))}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """48 setups over three seeds, with pictures, and with the recipes of their attacks in the store: one of each setup,
    of the first setup one of each seed."""
    folder = tmp_path_factory.mktemp("study") / "store"
    store = Store(folder)
    colour = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures = {"reconstructions": colour, "nearest": colour.flip(0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # nobody will miss these files after a crash
        for number, setup in enumerate(itertools.product(DEFENSES, ATTACKS, ARCHITECTURES, PRIORS)):
            for seed in range(SEEDS):
                if seed == 0 or number == 0:
                    attack = Draft(kind="recovered", name=f"attack-{number}", recipe=recipe(number, seed))
                    made = store.work(attack).finish({"latents": torch.zeros(1)}, {})
                told = content(number, seed, setup, made.id)
                put(folder, told, f"r{number}-{seed}", {"recovered": made.reference}, **pictures)
    found, broken = read_rows(folder)
    assert not broken and len(found) == SETUPS * SEEDS
    return found


@pytest.fixture(scope="module")
def page(rows, tmp_path_factory):
    return build(rows, tmp_path_factory.mktemp("page") / "report.html")


SHOWN_LINES = "[...document.querySelectorAll('.results tbody tr:not([hidden])')]"


def search(tab, words):
    """Type into the search box; the number of lines that are left."""
    tab.run(f"(b => {{ b.value = {words!r}; b.dispatchEvent(new Event('input')); }})(document.getElementById('words'))")
    return tab.run(f"{SHOWN_LINES}.length")


def test_without_its_pictures_the_page_is_below_a_megabyte(page):
    text = page.read_text(encoding="utf-8")
    pieces = text.split(PICTURES[0])
    without = pieces[0] + "".join(piece[piece.index('"') :] for piece in pieces[1:])
    assert len(pieces) > SETUPS * 10 and len(without.encode()) < 1_000_000, len(without.encode())


def test_a_page_asks_for_nothing_and_its_script_runs(tab, page):
    tab.open(page, WIDE)
    assert tab.requests() == [page.as_uri()]
    assert tab.run(f"{SHOWN_LINES}.length") == SETUPS
    assert tab.run("document.getElementById('shown').textContent") == f"{SETUPS} setups"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_page_is_as_wide_as_the_screen(tab, page, width):
    """Also with everything open, and every column chosen: tables scroll within their boxes."""
    tab.open(page, width)
    assert tab.run("document.documentElement.scrollWidth") <= width
    tab.run("document.querySelectorAll('.setup, .read').forEach(d => d.open = true)")
    tab.run("new Promise(requestAnimationFrame)")
    tab.run("document.querySelectorAll('article details').forEach(d => d.open = true)")
    tab.run("document.querySelectorAll('#columns input:not(:checked)').forEach(b => b.click())")
    assert tab.run("document.querySelectorAll('.setup article').length") == SETUPS * (SEEDS + 1)
    assert tab.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


def test_no_column_is_cut_at_1400_pixels(tab, page):
    tab.open(page, WIDE)
    box = "document.querySelector('.protocol .scroll')"
    assert tab.run(f"{box}.scrollWidth <= {box}.clientWidth"), tab.run(f"[{box}.scrollWidth, {box}.clientWidth]")
    heads = tab.run("[...document.querySelectorAll('.results th:not([hidden]) button')].map(b => b.innerText)")
    assert {"Target accuracy", "Attack accuracy", "KID, relative", "Time"} <= {head.strip() for head in heads}
    wide = "[...document.querySelectorAll('.results td')].filter(c => c.scrollWidth > c.clientWidth + 1).length"
    assert tab.run(wide) == 0
    tab.run("document.querySelectorAll('#columns input:not(:checked)').forEach(b => b.click())")
    assert tab.run(f"{box}.scrollWidth > {box}.clientWidth"), "more columns than fit would be noticed"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_heads_stay_in_sight_and_so_does_the_name_of_a_line(tab, page, width):
    tab.open(page, width)
    tab.run("(s => { s.scrollIntoView(); s.scrollTop = 900; s.scrollLeft = 200; })(document.querySelector('.scroll'))")
    place = "(e => Math.round(e.getBoundingClientRect().{side} - "
    place += "document.querySelector('.scroll').getBoundingClientRect().{side}))"
    heads = "[...document.querySelectorAll('.results thead th:not([hidden])')]"
    tops = tab.run(f"{heads}.map({place.format(side='top')})")
    left = tab.run(place.format(side="left") + "(document.querySelector('.results tbody td'))")
    assert set(tops) <= {0, 1, 2} and 0 <= left <= 2, (tops, left)
    assert tab.run("document.querySelector('.scroll').scrollTop") == 900


def test_on_a_phone_the_first_column_tells_setups_apart_and_numbers_are_beside_it(tab, page):
    tab.open(page, NARROW)
    first = tab.run("document.querySelector('.results tbody td').innerText")
    assert all(word in first for word in ("none", "gmi", "network_inversion_cnn", "gmi_gan"))
    seen = "[...document.querySelectorAll('.results thead th:not([hidden])')]"
    seen += f".filter(h => h.getBoundingClientRect().right <= {NARROW}).map(h => h.dataset.key)"
    assert tab.run(seen) == ["defense", "utility/test_accuracy_top1", "attack_accuracy_top1/main"]
    cut = (
        "[...document.querySelectorAll('.results th:not([hidden]) button')].filter(b => b.scrollWidth > b.clientWidth)"
    )
    assert tab.run(f"{cut}.map(b => b.innerText)") == []
    aligned = "(t => [t.tBodies[0].rows[0].cells, t.tFoot.rows[0].cells].map(c => "
    aligned += "Math.round([...c].at(-1).getBoundingClientRect().right)))(document.querySelector('.results'))"
    body, foot = tab.run(aligned)
    assert body == foot, "anchors stand under other columns than their own"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_text_of_the_plot_is_readable(tab, page, width):
    """A letter of 12 pixels in the drawing is at least 10 on the screen, and no text is cut or covers another."""
    tab.open(page, width)
    svg = "[...document.querySelectorAll('.plot > svg')].find(s => s.getBoundingClientRect().width)"
    heights = tab.run(
        f"[...({svg}).querySelectorAll('text')].map(t => t.getScreenCTM().a * parseFloat(getComputedStyle(t).fontSize))"
    )
    turned = [height for height in heights if height > 0]
    assert len(turned) > 8 and min(turned) >= 10
    inside = f"(s => [...s.querySelectorAll('text')].every(t => (b => b.left >= -1 && b.right <= {width} + 1)"
    assert tab.run(f"{inside}(t.getBoundingClientRect())))({svg})")
    boxes = f"[...({svg}).querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect().toJSON()])"
    for (one, a), (other, b) in itertools.combinations(tab.run(boxes), 2):
        apart = min(a["right"], b["right"]) < max(a["left"], b["left"]) + 1
        assert apart or min(a["bottom"], b["bottom"]) < max(a["top"], b["top"]) + 2, f"{one} covers {other}"


def test_search_takes_words_and_every_key(tab, page):
    tab.open(page, WIDE)
    assert search(tab, "boundary_erasing") == SETUPS / len(DEFENSES)
    assert search(tab, "boundary_erasing resnet152") == SETUPS / len(DEFENSES) / len(ARCHITECTURES)
    assert search(tab, "attack=gmi") == SETUPS / len(ATTACKS), "a value is whole"
    assert search(tab, "steps=10") == 0
    assert search(tab, "steps=107") == 1, "a key of the configuration"
    shown = tab.run("document.getElementById('shown').textContent")
    assert shown == f"1 of {SETUPS} setups"
    points, strips = (
        tab.run(f"document.querySelectorAll('{each}[data-setup]:not([hidden])').length")
        for each in (".wide-only ", ".gallery section")
    )
    assert (points, strips) == (1, 1), "plot and pictures follow"
    assert search(tab, "nothing-like-this") == 0
    tab.run("document.getElementById('reset').click()")
    assert tab.run(f"{SHOWN_LINES}.length") == SETUPS


def test_facets_of_names_and_of_any_other_key(tab, page):
    tab.open(page, WIDE)
    offered = tab.run("[...document.querySelectorAll('.facet')].map(f => f.dataset.key)")
    assert offered == ["defense", "attack", "architecture", "prior"], "what all share is no choice"
    box = (
        "[...document.querySelectorAll('.facet[data-key={key}] label')].find(l => l.textContent.startsWith('{value}'))"
    )
    tick = box + ".querySelector('input').click()"
    tab.run("document.querySelectorAll('.facet').forEach(f => f.open = true)")
    tab.run(tick.format(key="defense", value="tl_dmi"))
    tab.run(tick.format(key="defense", value="none"))
    assert tab.run(f"{SHOWN_LINES}.length") == 2 * SETUPS / len(DEFENSES), "values of one key are alternatives"
    tab.run(tick.format(key="architecture", value="resnet152"))
    assert tab.run(f"{SHOWN_LINES}.length") == SETUPS / len(DEFENSES), "keys add up"
    tab.run("document.getElementById('reset').click()")
    more = tab.run("[...document.getElementById('more').options].map(o => o.value)")
    assert "attack.budget" not in more and "dataset" not in more, "keys without a choice"
    assert "attack.search.steps" in more, "a key of the configuration"
    choose = "(s => { s.value = 'attack.search.steps'; s.dispatchEvent(new Event('change')); })"
    tab.run(choose + "(document.getElementById('more'))")
    tab.run("document.querySelector('.facet[data-key=\"attack.search.steps\"] input').click()")
    assert tab.run(f"{SHOWN_LINES}.length") == 1


def test_heads_sort_and_a_select_does_the_same(tab, page):
    tab.open(page, WIDE)
    column = "{lines}.map(r => Number(r.cells[{place}].dataset.value))"
    keys = tab.run("[...document.querySelectorAll('.results thead th')].map(h => h.dataset.key)")
    place = keys.index("attack_accuracy_top1/main")
    head = f"document.querySelectorAll('.results thead th')[{place}]"
    read = column.format(lines=SHOWN_LINES, place=place)
    before = tab.run(read)
    tab.run(f"{head}.querySelector('button').click()")
    assert tab.run(read) == sorted(before) and tab.run(f"{head}.getAttribute('aria-sort')") == "ascending"
    tab.run(f"{head}.querySelector('button').click()")
    assert tab.run(read) == sorted(before, reverse=True)
    choose = "(s => {{ s.value = 'knn_distance/main\\n{way}'; s.dispatchEvent(new Event('change')); }})"
    tab.run(choose.format(way="falling") + "(document.getElementById('sort'))")
    found = tab.run(column.format(lines=SHOWN_LINES, place=keys.index("knn_distance/main")))
    assert found == sorted(found, reverse=True) != before


def test_columns_are_chosen_and_further_metrics_come_with_anchors(tab, page):
    tab.open(page, WIDE)
    box = "document.querySelector('#columns input[value=\"{key}\"]').click()"
    heads = "[...document.querySelectorAll('.results thead th:not([hidden])')].map(h => h.dataset.key)"
    before = tab.run(heads)
    tab.run(box.format(key="cost/seconds"))
    assert tab.run(heads) == [key for key in before if key != "cost/seconds"]
    last = "[...document.querySelectorAll('.results tr')].slice(1)"
    last += ".map(r => Math.round([...r.cells].filter(c => !c.hidden).at(-1).getBoundingClientRect().right))"
    assert len(set(tab.run(last))) == 1, "anchors go with their column"
    tab.run(box.format(key="kid/main"))
    assert tab.run(heads)[-1] == "kid/main"
    ends = tab.run("[...document.querySelectorAll('.results tr')].slice(1).map(r => [...r.cells].at(-1).innerText)")
    assert len(ends) == SETUPS + 4 and all("k" in text for text in ends[:SETUPS])
    assert ends[-4].startswith("-2,380"), "the anchor of real images"
    tab.run(box.format(key="kid/main"))
    tab.run(box.format(key="public"))
    tab.run(box.format(key="candidates"))
    assert {"public", "candidates"} <= set(tab.run(heads)) and "kid/main" not in tab.run(heads)
    ends = tab.run(f"{SHOWN_LINES}.map(r => [...r.cells].at(-1).innerText)")
    assert ends == ["2"] * SETUPS, "what results say of themselves is a column too"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_two_setups_side_by_side_with_their_configurations(tab, page, width):
    tab.open(page, width)
    for number in (0, 9):
        tab.run(f"document.querySelector('.pick[value=\"{number}\"]').click()")
    tab.run("document.querySelector('.picked .go').click()")
    visible = "[...document.querySelectorAll('#compare .side')].filter(s => s.offsetParent)"
    read = f"{visible}.map(s => [...s.children].map(c => c.innerText.trim()))"
    shown = {key: (left, right) for key, left, right in tab.run(read)}
    assert shown["defense"] == ("none", "bido_hsic") or shown["defense"][0] != shown["defense"][1]
    assert "attack.search.steps" in shown and len(set(shown["attack.search.steps"])) == 2
    assert "attack.search.option_3" not in shown, "what is equal is hidden at first"
    assert "dataset" not in shown and "±" in shown["Attack accuracy"][0]
    few = len(shown)
    tab.run("document.getElementById('equal').click()")
    assert tab.run(f"{visible}.length") > few + 60
    fits = "(d => d.scrollWidth <= d.clientWidth && d.getBoundingClientRect().right <= innerWidth)"
    assert tab.run(f"{fits}(document.getElementById('compare'))")
    assert tab.run("document.querySelectorAll('#compare .gallery img').length") > 0
    tab.run("document.querySelector('#compare .close').click()")
    tab.run("document.querySelector('.pick[value=\"20\"]').click()")
    assert tab.run("[...document.querySelectorAll('.pick:checked')].map(b => b.value)") == ["9", "20"]


def test_a_box_shows_configuration_seeds_and_numbers(tab, page):
    tab.open(page, WIDE)
    text = "[...document.querySelectorAll('details.setup')].find(d => d.innerText.includes('none · gmi · resnet152 · "
    text += f"synthetic_faces · {PRIORS[0]}'))"
    tab.run(f"{text}.open = true")
    tab.run("new Promise(requestAnimationFrame)")
    tab.run(f"[...{text}.querySelectorAll('details')].forEach(d => d.open = true)")
    shown = tab.run(f"{text}.innerText")
    assert "attack.search.steps" in shown and "attacks.search.gradient.Gradient" in shown
    assert shown.count("Run it again:") == SEEDS and shown.count("Differs from the configuration above") == SEEDS - 1
    assert "Person 3 of the Long-Named: " in shown, "numbers by class have its name"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_classes_under_pictures_have_their_names(tab, page, width):
    tab.open(page, width)
    names = tab.run("[...document.querySelectorAll('.gallery section')][0].querySelectorAll('h5')[1].innerText")
    assert names == "Person 1 of the Long-Named"
    over = "[...document.querySelectorAll('.gallery .class')].filter(c => c.scrollWidth > c.clientWidth + 1).length"
    assert tab.run(over) == 0, "a long name does not push pictures apart"
