"""Unfinished work that was spoilt: set aside, and that part of it begun anew."""

from conftest import plan_for

from midefense.pipeline.pipeline import Pipeline
from midefense.pipeline.recovery import Recovery

SMALL = ("architecture=cnn", "architecture.widths=[4]", "architecture.size=8", "recipe.epochs=1")
SMALL += ("attack=gmi", "attack/objective=cross_entropy", "attack.search.steps=1")


def test_a_spoilt_group_is_attacked_again(tmp_path, monkeypatch, capsys):
    """The work of the other groups is kept."""
    words = ("dataset=toy", "dataset.size=8", *SMALL, "evidence.classes=[0,1]", "attack.group=1")
    pipeline = Pipeline(plan_for("attack", *words, "prior=toy", "tracking=none", store=tmp_path / "store"))
    attacked, whole = [], Recovery._recover_group

    def spoil_the_first(recovery, work, index, *others):
        whole(recovery, work, index, *others)
        attacked.append(index)
        if attacked == [0, 1]:
            file = work.folder / "group-00000.safetensors"
            file.write_bytes(file.read_bytes()[:-1])

    monkeypatch.setattr(Recovery, "_recover_group", spoil_the_first)
    assert len(pipeline.recovered.tensors()["evidence.labels"]) == 2 and attacked == [0, 1, 0]
    assert "group-00000.safetensors: expected a saved state" in capsys.readouterr().err
