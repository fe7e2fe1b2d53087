"""The optimiser and schedule of a recipe: what the learning rate of the attention is multiplied by."""

import copy

import pytest
import timm
import torch
from torch import nn

from conftest import CPU
from shuffle_attention import attach
from shuffle_attention.attach.weights import attention_parameters
from shuffle_attention.checkpoints import read_checkpoint
from shuffle_attention.models.detectors import create_detector
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.schedule import create_optimizer, create_schedule, learning_rate

NARROW = {"channels": [8, 8, 16, 16]}


def model_with(attention: str) -> nn.Module:
    torch.manual_seed(0)
    if attention.startswith("attached"):
        model = timm.create_model("resnet10t", num_classes=4, **NARROW)
        attach(model, attention.removeprefix("attached "), **({"groups": "auto"} if "shuffle" in attention else {}))
        return model
    return timm.create_model(f"{attention}_resnet18", num_classes=4, **NARROW)


def changes(model: nn.Module, recipe: Recipe, steps: int) -> dict[str, torch.Tensor]:
    """Return how far each parameter moves under gradients of 1."""
    model = copy.deepcopy(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = create_optimizer(model, recipe)
    schedule = create_schedule(optimizer, recipe, steps_per_epoch=2)
    for step in range(1, steps + 1):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        if schedule is not None:
            schedule.step_update(step)
    return {name: before[name] - parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("schedule", [{"sched": "none"}, {"sched": "cosine", "warmup_epochs": 2, "epochs": 4}])
@pytest.mark.parametrize("attention", ["sa", "cbam", "attached shuffle", "attached se"])
def test_the_attention_moves_by_the_factor_and_the_rest_as_before(attention, schedule):
    model = model_with(attention).double()
    base = Recipe(model="resnet18", opt="momentum", weight_decay=0, lr=0.01, **schedule)
    plain, faster = changes(model, base, 6), changes(model, base.replaced(attention_lr=10), 6)
    own = {id(parameter) for parameter in attention_parameters(model)}
    named = {name for name, parameter in model.named_parameters() if id(parameter) in own}
    assert named
    assert all(any(part in name for part in (".sa.", ".se.", "attention")) for name in named)
    for name, change in plain.items():
        torch.testing.assert_close(faster[name], change * (10 if name in named else 1), rtol=1e-9, atol=1e-12)


def test_the_ratio_stays_through_warm_up_and_schedule_and_groups_keep_their_weight_decay():
    model = model_with("sa")
    recipe = Recipe(opt="adamw", lr=0.01, attention_lr=3, weight_decay=0.1, decay_norm_and_bias=False, epochs=3)
    recipe = recipe.replaced(sched="cosine", warmup_epochs=1, warmup_lr=1e-3, min_lr=1e-4)
    optimizer = create_optimizer(model, recipe)
    schedule = create_schedule(optimizer, recipe, steps_per_epoch=4)
    assert [(g["weight_decay"], g.get("lr_scale", 1)) for g in optimizer.param_groups] == [(0, 1), (0.1, 1), (0, 3)]
    rates = []
    for step in range(13):
        assert schedule is not None
        schedule.step_update(step)
        first, *_, last = (group["lr"] for group in optimizer.param_groups)
        assert last == pytest.approx(3 * first)
        assert learning_rate(optimizer) == first
        rates.append(first)
    assert max(rates) == pytest.approx(0.01, rel=0.3)
    parameters = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters())
    # Without a factor, the groups are those that earlier versions saved.
    assert len(create_optimizer(model, recipe.replaced(attention_lr=1)).param_groups) == 2


def test_a_model_without_attention_is_named_and_a_detector_has_its_backbones(caplog):
    create_optimizer(timm.create_model("resnet10t"), Recipe(model="resnet10t", attention_lr=3))
    assert "attention_lr 3 has no effect: resnet10t has no attention" in caplog.text
    with torch.device("meta"):
        detector = create_detector("fcos", "sa_resnet18")
    assert len(attention_parameters(detector)) == 8 * 6


def test_a_run_goes_on_with_the_factor_of_its_recipe(shared_tree, tmp_path):
    fields = {"img_size": 32, "batch_size": 32, "workers": 0, "epochs": 1, "device": "cpu", "model": "sa_resnet18"}
    recipe = Recipe(data=str(shared_tree), model_args=NARROW, report=False, sched="constant", **fields)
    train(recipe.replaced(attention_lr=3), tmp_path / "run", CPU, task=Classification)
    train(recipe.replaced(attention_lr=5, epochs=2), tmp_path / "run", CPU, task=Classification, resume=True)
    last = read_checkpoint(tmp_path / "run/last.pt")
    rates = [group["lr"] for group in last["optimizer"]["param_groups"]]
    assert rates == pytest.approx([0.1, 0.5])
    assert [row["lr"] for row in last["history"]] == pytest.approx([0.1, 0.1])
