"""ultralytics: model files with shuffle attention, and attention attached to its networks."""

import copy
from pathlib import Path

import pytest
import torch
import yaml

import networks
from shuffle_attention import ShuffleAttention, attach
from shuffle_attention.errors import InputError

pytest.importorskip("ultralytics", reason="the extra yolo is not installed", exc_type=ImportError)

from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import SETTINGS

from shuffle_attention.models import yolo


def with_attention(scale: str = "n", arguments: tuple = (), source: int = -1) -> dict:
    """The model file of the tests with a row of attention after its C2f."""
    content = copy.deepcopy(networks.YOLO)
    content["scale"] = scale
    content["backbone"].insert(3, [source, 1, "ShuffleAttention", list(arguments)])
    content["head"] = [[[3, 4], 1, "Detect", ["nc"]]]
    return content


@pytest.fixture(autouse=True)
def registered():
    yolo.register()
    yolo.register()


@pytest.mark.parametrize(("scale", "channels"), [("n", 32), ("s", 64)])
def test_channels_are_those_after_width_scaling(scale, channels):
    model = DetectionModel(with_attention(scale, (4,)), ch=3, verbose=False)
    layer = model.model[3]
    assert type(layer) is ShuffleAttention
    assert (layer.channels, layer.groups) == (channels, 4)
    model(torch.zeros(1, 3, 64, 64))


def test_without_arguments_the_groups_fit_and_the_row_may_come_from_any_other():
    model = DetectionModel(with_attention(source=0), ch=3, verbose=False)
    assert (model.model[3].channels, model.model[3].groups) == (16, 8)
    assert model.model[4].conv.in_channels == 16


def test_errors_of_a_row():
    with pytest.raises(InputError, match="channels=32 and groups=3"):
        DetectionModel(with_attention(arguments=(3,)), ch=3, verbose=False)
    content = with_attention()
    content["backbone"][3][0] = [1, 2]
    with pytest.raises(InputError, match=r"one row that it comes from, got from=\[1, 2\]"):
        DetectionModel(content, ch=3, verbose=False)


def boxes(root: Path) -> Path:
    """Six images with a bright square each, labelled, and the file that says so."""
    from PIL import Image

    for split in ("train", "val"):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for number in range(6):
            image = Image.new("RGB", (64, 64), (40, 40, 40))
            image.paste((250, 250, 250), (8 * number, 16, 8 * number + 16, 32))
            image.save(root / "images" / split / f"{number}.png")
            centre = (8 * number + 8) / 64
            (root / "labels" / split / f"{number}.txt").write_text(f"{number % 3} {centre} 0.375 0.25 0.25\n")
    data = {"path": str(root), "train": "images/train", "val": "images/val", "names": ["a", "b", "c"]}
    (root / "data.yaml").write_text(yaml.safe_dump(data))
    return root / "data.yaml"


@pytest.fixture
def settled(tmp_path, monkeypatch) -> Path:
    """A folder that ultralytics works in, with a model file that has attention and one that has not."""
    monkeypatch.chdir(tmp_path)
    SETTINGS.update({"sync": False, "runs_dir": str(tmp_path / "runs"), "datasets_dir": str(tmp_path)})
    (tmp_path / "sa.yaml").write_text(yaml.safe_dump(with_attention()))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(networks.YOLO))
    return tmp_path


def test_it_trains_under_ultralytics_and_the_checkpoint_loads(settled):
    model = YOLO("sa.yaml", task="detect")
    before = copy.deepcopy(model.model.state_dict())
    train(model, settled)
    again = YOLO(settled / "runs/run/weights/last.pt").model
    layer = again.model[3]
    assert type(layer) is ShuffleAttention
    assert not torch.equal(layer.cweight, before["model.3.cweight"])


class Trainer(DetectionTrainer):
    """As docs/attach.md has it."""

    def get_model(self, cfg=None, weights=None, verbose=True):
        model = super().get_model(cfg, None, verbose)
        attach(model, "shuffle", where="residual")
        if weights:
            model.load(weights)
            x = networks.photographs().float()
            outputs = [networks.output(copy.deepcopy(m).float().eval(), x) for m in (model, weights)]
            self.difference = networks.difference(*outputs)
        return model


def test_a_trainer_attaches_to_weights_without_attention_and_goes_on_with_those_that_have_it(settled):
    plain = networks.network("ultralytics-yolo").float()
    torch.save({"model": plain, "train_args": {}}, settled / "plain.pt")
    model = YOLO(settled / "plain.pt")
    train(model, settled, trainer=Trainer)
    assert model.trainer.difference < 1e-5
    again = YOLO(settled / "runs/run/weights/last.pt")
    assert any(isinstance(module, ShuffleAttention) for module in again.model.modules())
    assert Trainer.get_model(model.trainer, again.model.yaml, again.model, verbose=False) is not None
    assert model.trainer.difference == 0


def train(model: YOLO, folder: Path, **options) -> None:
    model.train(
        data=str(boxes(folder / "squares")), epochs=1, imgsz=64, batch=3, workers=0, device="cpu", plots=False,
        project=str(folder / "runs"), name="run", amp=False, verbose=False, optimizer="SGD", lr0=0.1, warmup_epochs=0,
        **options,
    )  # fmt: skip


def test_attached_it_survives_the_fusion_of_norms():
    """ultralytics fuses before it predicts; the attention stands behind what is fused."""
    model = networks.network("ultralytics-yolo")
    report = attach(model)
    assert [row.place for row in report.layers] == ["model.2.m.0.cv2"]
    with torch.no_grad():
        expected = networks.output(model)
        model.fuse(verbose=False)
        assert networks.difference(networks.output(model), expected) < 1e-12
