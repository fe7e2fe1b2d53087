"""Distillation: the loss by hand, a teacher that does not change, and runs that resume to the bit."""

from pathlib import Path

import pytest
import timm
import torch
from torch.nn.functional import cross_entropy

from conftest import CPU, sanet_here
from shuffle_attention.checkpoints import read_checkpoint, write_checkpoint
from shuffle_attention.errors import InputError
from shuffle_attention.sanet.recipes.recipe import Recipe
from shuffle_attention.sanet.tasks.classification.predictor import restore_network
from shuffle_attention.sanet.tasks.classification.task import Classification
from shuffle_attention.sanet.tasks.detection.recipe import DetectionRecipe
from shuffle_attention.sanet.training.loop import train
from shuffle_attention.sanet.training.progress import Progress
from shuffle_attention.sanet.training.signals import Interrupted

STUDENT = {"model": "resnet10t", "model_args": {"channels": [4, 4, 8, 8]}, "img_size": 32, "report": False}


def recipe_for(data: Path, teacher: Path | str, **fields) -> Recipe:
    given = {"data": str(data), "batch_size": 32, "workers": 0, "epochs": 2, "device": "cpu", "lr": 0.05}
    return Recipe(**{**given, **STUDENT, "teacher": str(teacher), **fields})


@pytest.fixture(scope="module")
def teacher(run, tmp_path_factory) -> Path:
    """A checkpoint whose model takes images of another normalisation than the student."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    content = read_checkpoint(run / "best.pt")
    content["recipe"] |= {"mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4]}
    write_checkpoint(content, path)
    return path


def test_the_loss_is_that_of_hinton_and_only_the_student_has_gradients(teacher, shared_tree):
    opened = Classification.open(recipe_for(shared_tree, teacher, distill_alpha=0.3, smoothing=0.1), check=False)
    student = opened.create_model(restored=False)
    task = opened.create_trainer(student, CPU)
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 0, 1])
    loss, _ = opened.loss(task, (images, labels), CPU)
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert not any(module.training for module in task.teacher.model.modules())
    # The teacher takes the same pixels, normalised as it was trained.
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (opened.recipe.mean, opened.recipe.std))
    own_mean, own_std = torch.tensor([0.3, 0.4, 0.5]).view(1, 3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(1, 3, 1, 1)
    with torch.no_grad():
        known = restore_network(teacher).model.eval()((images * std + mean - own_mean) / own_std) / 4
        logits = student(images)
        p, q = known.softmax(1), (logits / 4).softmax(1)
        divergence = (p * (p / q).log()).sum(1).mean()
        expected = 0.7 * cross_entropy(logits, labels, label_smoothing=0.1) + 0.3 * 16 * divergence
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_distilled_run_resumes_to_the_bit_and_knows_its_teacher(teacher, shared_tree, tmp_path, monkeypatch):
    recipe = recipe_for(shared_tree, teacher, ema_decay=0.9, grad_accum=2, precision="bf16", mixup=0.2, clip_grad=1.0)
    before = teacher.read_bytes()
    train(recipe, tmp_path / "whole", CPU, task=Classification)
    step = Progress.step

    def stop(self, number, sums):
        step(self, number, sums)
        if self._epoch == 1:
            raise Interrupted(15)

    recipe = recipe.replaced(checkpoint_steps=1)
    monkeypatch.setattr(Progress, "step", stop)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "parts", CPU, task=Classification)
    monkeypatch.undo()
    began = read_checkpoint(tmp_path / "parts/last.pt")["recipe"]
    assert len(began["teacher_digest"]) == 64
    train(Recipe.of(began), tmp_path / "parts", CPU, task=Classification, resume=True)
    one, other = (read_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    for part in ("state_dict", "state_dict_ema"):
        assert all(torch.equal(value, other[part][key]) for key, value in one[part].items())
        assert not any("teacher" in key for key in one[part])
    assert teacher.read_bytes() == before
    content = read_checkpoint(teacher)
    content["state_dict"]["fc.bias"] += 1
    write_checkpoint(content, tmp_path / "other.pt")
    changed = Recipe.of({**began, "teacher": str(tmp_path / "other.pt"), "epochs": 3})
    with pytest.raises(InputError, match="other weights than the teacher that this run began with"):
        train(changed, tmp_path / "parts", CPU, task=Classification, resume=True)


def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_written(teacher, shared_tree, tmp_path, monkeypatch):
    content = read_checkpoint(teacher)
    write_checkpoint({**content, "classes": content["classes"][::-1]}, tmp_path / "order.pt")
    write_checkpoint({**content, "kind": "detector"}, tmp_path / "detector.pt")
    network = timm.create_model("resnet10t", channels=[4, 4, 8, 8], num_classes=7)
    create = timm.create_model
    with_seven = lambda name, **args: network if name == "resnet18" else create(name, **args)  # noqa: E731
    monkeypatch.setattr(timm, "create_model", with_seven)
    unknown = next(name for name in timm.list_models() if not timm.models.is_model_pretrained(name))
    cases = [
        ({"teacher": "missing.pt"}, "teacher: no checkpoint at missing.pt"),
        ({"teacher": "resnet58"}, "no model 'resnet58'; did you mean resnet50"),
        ({"teacher": unknown}, f"timm has no pretrained weights of {unknown}"),
        ({"teacher": "resnet18"}, "teacher resnet18 tells 7 classes apart, and the data have 4"),
        (
            {"teacher": str(tmp_path / "order.pt")},
            "has the classes digit3, digit2, digit1, digit0, and the data digit0",
        ),
        ({"teacher": str(tmp_path / "detector.pt")}, "holds a detector, not a classifier"),
        ({"in_chans": 1}, "takes images of 3 channels, and in_chans is 1"),
    ]
    for fields, message in cases:
        with pytest.raises(InputError, match=message):
            train(recipe_for(shared_tree, teacher).replaced(**fields), tmp_path / "run", CPU, task=Classification)
    assert not (tmp_path / "run").exists()


def test_settings_without_a_teacher_and_teachers_of_detectors_are_refused(capsys):
    with pytest.raises(InputError, match="distill_alpha must be given with a teacher, got 0.9"):
        Recipe(distill_alpha=0.9)
    with pytest.raises(InputError, match="teacher: a detector has no teacher"):
        DetectionRecipe.of({"teacher": "resnet50"})
    with pytest.raises(SystemExit):
        sanet_here("detect", "train", "--recipe", "digits", "--teacher", "resnet50")
    assert "--teacher: a detector has no teacher, since distillation compares the logits" in capsys.readouterr().err
