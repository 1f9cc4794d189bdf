"""Fabricated result rows in a store, for tests of the report."""

import torch

from midefense.store.artefacts import Draft
from midefense.store.store import Store


def document(seed=0, accuracy=0.9, **names):
    """The content of a result's metrics.json."""
    about = {
        "dataset": "digits",
        "public": "own",
        "architecture": "cnn",
        "defense": "none",
        "prior": "gmi_gan",
        "attack": "gmi",
        "access": "whitebox",
        "protocol": "ab12cd34",
        "setup": f"h{names.get('defense', 'none')}",
        "classes": 5,
        "candidates": 2,
        "date": "2026-01-02",
        "device": "cpu",
        **names,
    }
    about["seeds"] = {"target": seed, "prior": 0, "attack": seed}
    about.setdefault(
        "command", f"python evaluate.py defense={about['defense']} seeds.target={seed} seeds.attack={seed}"
    )
    about["ids"] = {"target": "t1", "evaluators": {"main": "e1"}}
    metrics = {
        "utility/test_accuracy_top1": {"value": 0.97, "n": 1, "kind": "utility"},
        "attack_accuracy_top1/main": {
            "value": accuracy,
            "low": accuracy - 0.1,
            "high": accuracy + 0.05,
            "n": 10,
            "per_class": {"0": 1.0, "1": accuracy},
            "higher_leaks": True,
            "kind": "privacy",
        },
        "attack_accuracy_top1/other": {"value": 0.1, "n": 10, "higher_leaks": True, "kind": "privacy"},
        "knn_distance/main": {"value": 14.25, "n": 10, "higher_leaks": False, "kind": "privacy"},
        "fid/main": {"value": None, "n": 10, "reason": "10 images for 64 features", "higher_leaks": False},
        "cost/queries_per_target_mean": {"value": 1500.0, "n": 1, "kind": "cost"},
        "cost/seconds": {"value": 12.345, "n": 1, "kind": "cost"},
    }
    anchors = {
        "real": {"attack_accuracy_top1/main": 0.99},
        "prior": {"attack_accuracy_top1/main": 0.22},
        "chance": {"attack_accuracy_top1/main": 0.1},
    }
    return {"row": about, "metrics": metrics, "anchors": anchors}


def put(store, content, name, parents=None, **changes):
    """Write a result as the pipeline does and return its folder. `parents`: references by role; `changes` replace
    tensors, None leaves one out."""
    images = torch.randint(256, (10, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.linspace(0, 1, 10)
    tensors = {"reconstructions": images, "nearest": images, "labels": torch.arange(10) // 2}
    tensors |= {"distance": numbers, "confidence": numbers, **changes}
    recipe = {"kind": "result", "of": name, "note": "<b>&amp;"}
    draft = Draft(kind="result", name=name, recipe=recipe, parents=parents or {})
    present = {part: value for part, value in tensors.items() if value is not None}
    return Store(store).work(draft).finish(present, content).path
