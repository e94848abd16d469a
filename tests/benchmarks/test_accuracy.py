"""The benchmark of accuracy runs, in a short form; nothing here looks at which side is better."""

from __future__ import annotations

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn

from tests.benchmarks import accuracy, classifiers, peers
from tests.zoo import shim

# Torch-Pruning's own code, and what it calls.
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "ResNet": dataclasses.replace(
        classifiers.TASKS["digits ResNet"], build=functools.partial(classifiers.ResNet, 4), epochs=1, tuning=1
    )
}


def test_both_sides_keep_the_same_number_of_parameters() -> None:
    pytest.importorskip("sklearn")
    (row,) = accuracy.kept(SMALL, seeds=(0,), scopes=("local",), samples=64)
    assert (row["model"], row["scope"], row["seeds"]) == ("ResNet", "local", 1)
    assert row["fxprune left %"] <= row["torch-pruning left %"]
    assert row["fxprune left %"] == pytest.approx(row["torch-pruning left %"], rel=0.03)
    assert row["torch-pruning left %"] == pytest.approx(25, rel=0.3)
    assert all(0 <= value <= 100 for key, value in row.items() if key.endswith(" %"))
    assert row["difference, tuned"] == pytest.approx(row["fxprune tuned %"] - row["torch-pruning tuned %"])
    assert row["seeds below"] == (row["difference, tuned"] < 0)


def test_the_other_side_ranks_all_channels_together_if_asked() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    with torch.no_grad():
        first, second = model[0].get_parameter("weight"), model[2].get_parameter("weight")
        first[2:], second[:, 2:] = 0, 0
        second[:2] = 0.1  # so that two channels of the other layer follow these six
    for everywhere, left in ((False, [4, 4, 2]), (True, [2, 6, 2])):
        small = peers.torch_pruned(copy.deepcopy(model), (torch.randn(2, 4),), {}, 0.5, everywhere)
        assert [len(p) for p in small.parameters() if p.dim() == 2] == left


def test_differences_are_those_of_each_seed() -> None:
    rows = [
        {"model": "m", "scope": "local", "seed": seed, "fxprune left %": 25.0}
        | {f"{side} {key} %": value for key in ("pruned", "tuned") for side, value in found.items()}
        for seed, found in enumerate([{"fxprune": 80.0, "torch-pruning": 84.0}, {"fxprune": 90.0, "torch-pruning": 88.0}])
    ]
    found = accuracy.summary(rows)
    assert found["fxprune tuned %"] == 85
    assert found["difference, tuned"] == -1
    assert found["error, tuned"] == pytest.approx(3)  # the standard deviation of -4 and 2, by the root of two
    assert found["seeds below"] == 1
    assert found["difference, tuned, of each seed"] == "-4.0 +2.0"


def test_training_depends_on_the_seed_alone() -> None:
    pytest.importorskip("sklearn")
    data, weights = classifiers.digits(0).few(64), []
    task = dataclasses.replace(SMALL["ResNet"], build=lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = task.build()
        accuracy.train(model, task, data, 4, seed)
        assert not model.training
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0] - weights[2]).abs().max() > 1e-3


def test_models_and_what_they_learn() -> None:
    shim.install()
    pytest.importorskip("timm")
    pytest.importorskip("sklearn")
    for name in ("digits ResNet", "digits ViT"):
        task = classifiers.TASKS[name]
        data = task.data(1)
        assert (len(data.x), len(data.test_x)) == (899, 898)
        assert task.build()(data.x[:2]).shape == (2, 10)
        assert task.augmented(data.x[:3], torch.Generator().manual_seed(0)).shape == data.x[:3].shape
    text = classifiers.documentation(1, ("python", "torch"), 30)
    assert set(text.y.tolist()) == set(text.test_y.tolist()) == {0, 1}
    assert ((text.x > 1).sum(1) > 0).all()
    known = {tuple(row) for row in text.x.tolist()}
    assert not any(tuple(row) in known for row in text.test_x.tolist())
    assert classifiers.TextClassifier()(text.x[:2]).shape == (2, 7)


def test_images_are_moved_by_up_to_one_pixel() -> None:
    image = torch.zeros(40, 1, 8, 8)
    image[:, :, 3, 3] = 1
    moved = classifiers.shifted(image, torch.Generator().manual_seed(0))
    assert moved.shape == image.shape
    places = {tuple(place[2:]) for place in moved.nonzero().tolist()}
    assert len(places) > 4
    assert places <= {(y, x) for y in (2, 3, 4) for x in (2, 3, 4)}
