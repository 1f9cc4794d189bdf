"""Blinded pairs: half of one person, told to nobody; a page that this machine alone can open; answers that stay."""

import http.client
import io
import json
import re
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

from midefense.commands.main import main
from midefense.datasets import base
from midefense.datasets.celeba import Celeba
from midefense.datasets.image_folder import ImageFolder
from midefense.datasets.splits import digest
from midefense.datasets.toy import Toy
from midefense.store.artefacts import Draft
from midefense.store.store import Store
from midefense.studies.rating import Answers, Pair, Sheet, agreement, open_study, require_rater
from midefense.studies.rating_page import RatingServer, as_png
from midefense.types import Images, Refused

CLASSES, EACH = 4, 5


def pictures(offset=0):
    """Pictures of one shade each: which one was shown can be read off it."""
    shades = (torch.arange(CLASSES * EACH) * 5 + offset).to(torch.uint8)
    return shades[:, None, None, None].expand(-1, 1, 8, 8).contiguous()


@pytest.fixture
def result(store):
    """`result(dataset=..., public=..., prior=...)`: a stored row with pictures, of a target of that dataset."""

    def make(dataset="midefense.datasets.toy.Toy", public="own", labels=None, prior=None, learned=None):
        labels = torch.arange(CLASSES).repeat_interleave(EACH) if labels is None else labels
        tensors = {"reconstructions": pictures(), "nearest": pictures(2), "labels": labels}
        tensors |= {"candidates": torch.arange(len(labels)), "distance": torch.zeros(len(labels))}
        recipe = {"kind": "target", "dataset": {"_target_": dataset, "revision": 1}, "of": public}
        target = Store(store).work(Draft(kind="target", name="target", recipe=recipe)).finish({}, {})
        prior = {"_target_": "midefense.priors.toy.ToyFamily"} if prior is None else prior
        recipe = {"kind": "recovered", "prior": {"prior": prior} | ({"public": learned} if learned else {})}
        recovered = Store(store).work(Draft(kind="recovered", name="recovered", recipe=recipe)).finish({}, {})
        draft = Draft(
            kind="result",
            name="row",
            recipe={"kind": "result", "of": [target.id, recovered.id]},
            names={"public": public, "prior": "made"},
            parents={"target": target.reference, "recovered": recovered.reference},
        )
        return Store(store).work(draft).finish(tensors, {})

    return make


def private():
    """Seven private images of every person, of a shade each."""
    labels = torch.arange(CLASSES).repeat_interleave(7)
    pixels = (torch.arange(len(labels)) * 5 + 2).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return Images(pixels, labels, torch.arange(len(labels)), [str(name) for name in range(CLASSES)])


def test_half_of_a_sheet_are_of_one_person_and_no_place_tells_which(result):
    sheet = Sheet.of(result(), private(), 20, 0)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    assert len(sheet.pairs) == 20 and len({pair.left for pair in sheet.pairs}) == 20
    assert all((labels[pair.left] == private().labels[pair.right]) == pair.same for pair in sheet.pairs)
    kinds = [pair.same for pair in sheet.pairs]
    assert sum(kinds) == 10 and kinds != sorted(kinds) and kinds[::2] != [True] * 10
    assert Sheet.of(result(), private(), 20, 0).pairs == sheet.pairs != Sheet.of(result(), private(), 20, 1).pairs
    assert len(Sheet.of(result(), private(), 500, 0).pairs) == 20


def test_the_picture_of_either_person_is_any_of_theirs(result):
    """Were it the one nearest to the reconstruction for one kind alone, the choice would look like recognition."""
    shown = {True: set(), False: set()}
    for seed in range(60):
        for pair in Sheet.of(result(), private(), 20, seed).pairs:
            shown[pair.same].add(pair.right)
    assert shown[True] == shown[False] == set(range(len(private())))


def test_what_cannot_be_paired_is_refused(result):
    with pytest.raises(Refused, match="pictures of two people or more"):
        Sheet.of(result(labels=torch.zeros(CLASSES * EACH).long()), private(), 5, 0)
    with pytest.raises(Refused, match="--rater: expected a name"):
        require_rater("\n")


def test_who_may_be_shown():
    """What lies in a reader's folders, and pictures of people, never."""
    shown = {cls.__name__ for cls in _all_subclasses(base.Dataset) if cls.may_be_shown}
    assert shown == {"Toy", "Digits", "Mnist", "FashionMnist", "SyntheticFaces"}
    assert not Celeba.may_be_shown and not ImageFolder.may_be_shown


def _all_subclasses(cls):
    from contract.listing import class_of, options

    return {found for name in options("dataset") if issubclass(found := class_of("dataset", name), cls)}


def test_pictures_of_people_are_refused(result, store):
    for made, sentence in [
        (result(dataset="midefense.datasets.celeba.Celeba"), "expected a dataset that may be shown, got Celeba"),
        (result(dataset="mine.Toy"), "expected a dataset that may be shown, got Toy"),
        (result(public="ffhq"), "the dataset's own public part, got public=ffhq"),
    ]:
        with pytest.raises(Refused, match=sentence):
            open_study(Store(store), made.reference, 4, 0)
    stylegan = {"_target_": "midefense.priors.stylegan2.prior.StyleGan2", "sha256": "0"}
    learned = {"_target_": "midefense.priors.gmi.GmiGan"}
    for made, sentence in [
        (result(prior=stylegan), "expected a prior that learned here, got prior=made, whose weights or code"),
        (result(prior={"_target_": "midefense.priors.gmi.GmiGan", "of": [stylegan]}), "expected a prior that learned"),
        (result(prior={"_target_": "mine.Prior"}), "expected a prior that learned here"),
        (result(prior=learned, learned="f" * 64), "got prior=made, which learned from other pictures"),
    ]:
        with pytest.raises(Refused, match=sentence):
            open_study(Store(store), made.reference, 4, 0)
    own = digest(Toy().load().public)
    sheet, _ = open_study(Store(store), result(prior=learned, learned=own).reference, 4, 0)
    assert sheet.private.shape[1:] == (1, 32, 32), "the dataset's own"
    assert main(["rate", result(dataset="mine.Toy").reference, "--store", str(store)]) == 1


# ------------------------------------------------------------------------------------------------ answers


def test_answers_are_only_ever_appended_and_the_first_stays(tmp_path):
    answers = Answers(tmp_path / "study")
    assert answers.read() == [] and not answers.folder.exists()
    answers.add("anna", 3, "same", 1.25)
    before = answers.file.read_bytes()
    answers.add("ben", 3, "different", 2)
    assert answers.file.read_bytes().startswith(before)
    with pytest.raises(Refused, match="expected one answer of anna, got another; the first stays"):
        answers.add("anna", 3, "different", 1)
    with pytest.raises(Refused, match="expected same or different, got 'maybe'"):
        answers.add("anna", 4, "maybe", 1)
    assert answers.of("anna") == {3: "same"} and answers.of("ben") == {3: "different"}
    answers.file.write_text("no answer\n")
    with pytest.raises(Refused, match="expected an answer in line 1"):
        answers.read()


def test_a_line_that_was_cut_off_is_left_out_and_ended_before_the_next(tmp_path):
    """A full disk, or a kill within a write: the next answer makes the file whole, and the pair is asked again."""
    answers = Answers(tmp_path / "study")
    answers.add("anna", 0, "same", 1)
    answers.add("bérénice", 1, "same", 1)
    whole = answers.file.read_bytes()
    for cut in (1, 40):
        answers.file.write_bytes(whole[:-cut])
        assert answers.of("anna") == {0: "same"} and len(answers.read()) == 1 and answers.cut_off == 1
        answers.add("anna", 1, "different", 1)
        answers.add("anna", 2, "same", 1)
        assert answers.of("anna") == {0: "same", 1: "different", 2: "same"} and answers.of("bérénice") == {}
        assert answers.file.read_bytes().startswith(whole[:-cut]) and answers.cut_off == 1


def test_a_store_that_cannot_be_written_is_refused_before_anybody_rates(result, store, monkeypatch, capsys):
    row = result()

    def refused(self):
        raise Refused("store: cannot write")

    monkeypatch.setattr(Store, "require_writable", refused)
    words = ["rate", row.reference, "--store", str(store)]
    assert main(words) == 0 and main([*words, "--rater", "anna"]) == 1
    assert "cannot write" in capsys.readouterr().err


def said(**raters):
    return [
        {"rater": name, "item": item, "answer": "same" if mark == "s" else "different"}
        for name, marks in raters.items()
        for item, mark in enumerate(marks)
        if mark != "-"
    ]


def test_agreement_of_one_of_two_and_of_three():
    pairs = [Pair(0, 0, True), Pair(1, 1, True), Pair(2, 5, False), Pair(3, 6, False)]
    assert agreement(pairs, []) == ["no answers yet"]
    (alone,) = agreement(pairs, said(anna="ssds"))
    assert alone.startswith("anna: 4 of 4 pairs; 100 % of pairs of one person taken for the same, 50 % of strangers")
    assert alone.endswith("difference 50 points")
    *_, two = agreement(pairs, said(anna="ssdd", ben="sdd-"))
    assert two.startswith("Cohen's kappa 0.4 over 3 pairs")
    *_, three = agreement(pairs, said(anna="ssdd", ben="ssdd", carl="ssdd"))
    assert three.startswith("Fleiss' kappa 1 over 4 pairs")
    assert "n/a" in agreement(pairs, said(anna="ss--"))[0], "no stranger was judged"


# ------------------------------------------------------------------------------------------------ the page


@dataclass
class Visitor:
    """A browser at a server that is at work in another thread."""

    server: RatingServer

    def ask(self, path, body=None, host=None, method=None):
        port = self.server.server_address[1]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        headers = {"Host": host or f"127.0.0.1:{port}"}
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, content, dict(answer.getheaders())

    def page(self, path="", **more):
        return self.ask(f"/{self.server.token}/{path}", **more)


@pytest.fixture
def visitor(result, tmp_path):
    with RatingServer(Sheet.of(result(), private(), 6, 0), Answers(tmp_path / "study"), "anna") as server:
        thread = threading.Thread(target=server.serve_all, daemon=True)
        thread.start()
        yield Visitor(server)
        server.open_items.clear()
        thread.join(10)
        assert not thread.is_alive()


def test_only_who_has_the_token_and_names_this_machine_sees_anything(visitor):
    assert visitor.server.server_address[0] == "127.0.0.1"
    assert visitor.page()[0] == 200 and len(visitor.server.token) >= 32
    port = visitor.server.server_address[1]
    assert visitor.page(host=f"localhost:{port}")[0] == 200
    for path, host in [("/", None), ("/guess/", None), (f"/{visitor.server.token}", None), ("/../", None)]:
        assert visitor.ask(path, host=host)[:2] == (404, b"")
    assert visitor.page(host="elsewhere.example")[:2] == (404, b"")
    assert visitor.page(host=f"elsewhere.example:{port}")[:2] == (404, b"")
    assert visitor.ask("/guess/answer", body=b"{}")[0] == 404
    assert visitor.page("picture/6/left")[0] == visitor.page("picture/0/middle")[0] == 404
    assert visitor.page("picture/-1/left")[0] == visitor.page("../../x")[0] == 404


def test_the_page_names_no_other_host_and_tells_nobody_which_pairs_are_of_one_person(visitor):
    _, page, headers = visitor.page()
    text = page.decode()
    assert not re.findall(r"https?://|//[a-z]", text) and "default-src 'none'" in headers["Content-Security-Policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", headers["Content-Security-Policy"])[1]
    assert f'nonce="{nonce}"' in text
    assert json.loads(re.search(r"const items = (\[.*?\])", text)[1]) == [0, 1, 2, 3, 4, 5]
    assert "catch (error)" in text and "Not stored" in text, "a server that has ended is told of"
    assert "true" not in text and "class" not in text
    sheet = visitor.server.sheet
    for item, pair in enumerate(sheet.pairs):
        for side, row, offset in (("left", pair.left, 0), ("right", pair.right, 2)):
            status, content, headers = visitor.page(f"picture/{item}/{side}")
            image = Image.open(io.BytesIO(content))
            assert status == 200 and headers["Content-Type"] == "image/png" and image.info == {}
            assert set(np.asarray(image).flatten().tolist()) == {5 * row + offset} and image.size == (256, 256)


def test_answers_are_taken_once_each_until_all_are_there(visitor):
    def answer(item, told):
        return visitor.page("answer", body=json.dumps({"item": item, "answer": told, "seconds": 1.0}))

    assert answer(0, "same")[0] == 200
    status, sentence, _ = answer(0, "different")
    assert status == 409 and b"expected a pair without an answer" in sentence
    assert answer(1, "perhaps")[0] == answer(99, "same")[0] == answer("0", "same")[0] == 409
    assert visitor.page("answer", body="no json")[0] == visitor.page("answer", body="[1]")[0] == 409
    assert visitor.page("answer", body="x" * 2000)[0] == 404
    assert visitor.server.answers.of("anna") == {0: "same"} and visitor.server.left == 5
    for item in range(1, 6):
        assert answer(item, "different")[0] == 200
    assert visitor.server.left == 0
    again = RatingServer(visitor.server.sheet, visitor.server.answers, "anna")
    assert again.left == 0
    again.server_close()


def test_the_command_prints_what_was_answered(result, store, capsys):
    row = result()
    words = ["rate", row.reference, "--store", str(store), "--pairs", "4"]
    assert main(words) == 0 and "no answers yet" in capsys.readouterr().out
    sheet, answers = open_study(Store(store), row.reference, 4, 0)
    for item in range(4):
        answers.add("anna", item, "same", 1.0)
    assert main([*words, "--rater", "anna"]) == 0, "all is answered: nothing is served"
    said = capsys.readouterr().out
    assert "anna: 4 of 4 pairs" in said and "100 % of strangers; difference 0 points" in said and "http" not in said
    assert answers.folder == store / "ratings" / f"{row.id}-4-0"
    with pytest.raises(SystemExit):
        main([*words, "--port", "70000"])
    assert "expected a port from 0 to 65535, got 70000" in capsys.readouterr().err


def test_a_picture_of_any_size_is_large_enough_to_see():
    for shape in ((1, 8, 8), (3, 32, 32), (3, 300, 300)):
        image = Image.open(io.BytesIO(as_png(np.zeros(shape, dtype=np.uint8))))
        assert image.size[0] >= 256 and image.mode == ("L" if shape[0] == 1 else "RGB")
