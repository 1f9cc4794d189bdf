"""Chunks that are left to the machine: as many rows as its memory holds, by what the first few took."""

import pytest
import torch
from conftest import plan_for

from midefense.attacks.chunks import ON_A_CPU, Measured, chunks_of
from midefense.types import Refused


class Card:
    """A device of `total` bytes that holds weights, and takes `each` for every row that is looked at."""

    def __init__(self, total, weights, each):
        self.total, self.weights, self.each = total, weights, each
        self.most = 0

    def now(self):
        self.most = self.weights
        return self.weights

    def look(self, rows):
        self.most = max(self.most, self.weights + self.each * (rows.stop - rows.start))

    def peak(self):
        return self.most


def looked_at(chunks, card, count):
    pieces = []
    for rows in chunks.slices(count):
        card.look(rows)
        pieces.append((rows.start, rows.stop))
    return pieces


def test_the_first_rows_tell_how_many_fit():
    card = Card(total=1000, weights=200, each=20)  # 80 % of 1000, less the weights, hold 30
    chunks = Measured(card)
    assert chunks.width_of(70) is None
    assert looked_at(chunks, card, 70) == [(0, 4), (4, 34), (34, 64), (64, 70)]
    assert looked_at(chunks, card, 70) == [(0, 30), (30, 60), (60, 70)], "measured once per group"
    assert card.most <= 0.8 * card.total
    assert (chunks.width_of(70), chunks.width_of(8)) == (30, 8)


def test_few_rows_and_a_full_card():
    card = Card(total=1000, weights=900, each=500)
    chunks = Measured(card)
    assert looked_at(chunks, card, 3) == [(0, 3)]
    assert looked_at(chunks, card, 7) == [(0, 3), (3, 6), (6, 7)], "never fewer than what went well"
    assert looked_at(Measured(card), card, 0) == []


def test_on_a_cpu_a_fixed_number():
    assert [rows.stop for rows in chunks_of("auto", torch.device("cpu")).slices(60)] == [ON_A_CPU, 2 * ON_A_CPU, 60]


def test_it_is_no_number_of_the_recipe(store):
    words = ["dataset=digits", "attack=gmi_small"]
    usual, auto = (plan_for("attack", *words, f"attack.chunk={chunk}", store=store) for chunk in ("null", "auto"))
    assert usual.attack.recipe() == auto.attack.recipe() and auto.attack.build().chunk == "auto"
    with pytest.raises(Refused, match="attack.chunk: expected a whole number from 1 or auto or null, got 'some'"):
        plan_for("attack", *words, "attack.chunk=some", store=store)


def test_coupled_parts_refuse_it(store):
    words = ["dataset=digits", "attack=ked_mi_small"]
    with pytest.raises(Refused, match="attack.chunk: expected null, because .* is coupled .*, got auto"):
        plan_for("attack", *words, "attack.chunk=auto", store=store)
