"""ultralytics: model files with shuffle attention, and attention attached to its networks."""

import copy
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import networks
from conftest import sanet_here
from shuffle_attention import ShuffleAttention, attach, create_attention, detach
from shuffle_attention.attach.insert import attached
from shuffle_attention.errors import InputError

pytest.importorskip("ultralytics", reason="the extra yolo is not installed", exc_type=ImportError)

from ultralytics import YOLO
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn import tasks
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import SETTINGS
from ultralytics.utils.callbacks.base import default_callbacks
from ultralytics.utils.dist import ddp_cleanup, generate_ddp_file
from ultralytics.utils.patches import torch_load

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


@pytest.fixture
def forget(monkeypatch):
    """Return a function that undoes the registration, as in another process that has imported ultralytics alone."""

    def undo() -> None:
        patched = [
            (tasks, "parse_model"),
            (tasks.BaseModel, "load"),
            (Model, "train"),
            (BaseTrainer, "build_optimizer"),
        ]
        for owner, name in patched:
            monkeypatch.setattr(owner, name, getattr(owner, name).__wrapped__)
        monkeypatch.delattr(tasks, yolo.ROW)
        monkeypatch.setitem(default_callbacks, "on_pretrain_routine_start", [])
        monkeypatch.delitem(sys.modules, yolo.__name__)
        monkeypatch.delattr(sys.modules["shuffle_attention.models"], "yolo")
        with pytest.raises(KeyError, match=yolo.ROW):
            DetectionModel(with_attention(), ch=3, verbose=False)

    return undo


@pytest.mark.parametrize(("scale", "channels"), [("n", 32), ("s", 64)])
def test_channels_are_those_after_width_scaling(scale, channels):
    model = DetectionModel(with_attention(scale, (4,)), ch=3, verbose=False)
    layer = model.model[3]
    assert isinstance(layer, ShuffleAttention)
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


@pytest.fixture
def settled(tmp_path, monkeypatch) -> Path:
    """A folder that ultralytics works in, with a model file that has attention and one that has not."""
    monkeypatch.chdir(tmp_path)
    SETTINGS.update({"sync": False, "runs_dir": str(tmp_path / "runs"), "datasets_dir": str(tmp_path)})
    (tmp_path / "sa.yaml").write_text(yaml.safe_dump(with_attention()))
    (tmp_path / "plain.yaml").write_text(yaml.safe_dump(networks.YOLO))
    return tmp_path


def test_sanet_yolo_trains_rows_and_their_checkpoint_trains_on_in_another_process(settled, forget, capsys):
    forget()
    arguments = [f"{name}={value}" for name, value in options(settled).items()]
    assert sanet_here("yolo", "detect", "train", "model=sa.yaml", *arguments) == 0
    forget()
    again = YOLO(settled / "runs/run/weights/last.pt")
    layer = again.model.model[3]
    assert isinstance(layer, ShuffleAttention)
    rebuilt = DetectionModel(again.model.yaml, ch=3, verbose=False)
    assert not torch.equal(rebuilt.model[3].cweight, layer.cweight)
    rebuilt.load(again.model)
    assert torch.equal(rebuilt.model[3].cweight, layer.cweight)
    capsys.readouterr()
    assert sanet_here("yolo", "train", "modle=sa.yaml") == 2
    assert "modle" in capsys.readouterr().err


def test_processes_of_several_gpus_know_the_rows(settled, forget):
    """Ultralytics pickles trainer, model and callbacks for them; the model may be the name of a file."""
    model = YOLO("sa.yaml", task="detect")
    trainer = SimpleNamespace(args=SimpleNamespace(), model="sa.yaml", callbacks=model.callbacks)
    file = generate_ddp_file(trainer)  # pyright: ignore[reportArgumentType]
    try:
        forget()
        torch_load(Path(file).with_suffix(".pt"), map_location="cpu")
    finally:
        ddp_cleanup(trainer, file)  # pyright: ignore[reportArgumentType]
    assert DetectionModel("sa.yaml", ch=3, verbose=False)


@pytest.mark.filterwarnings("ignore:shuffle_attention.layers:DeprecationWarning")
def test_rows_of_version_0_1_train_on(forget):
    model = DetectionModel(with_attention(), ch=3, verbose=False)
    row, model.model[3] = model.model[3], create_attention("shuffle", 32, groups=16)  # the class that rows had
    model.model[3].i, model.model[3].f = row.i, row.f
    pickled = pickle.dumps(model, 2).replace(b"shuffle_attention.attention.shuffle\n", b"shuffle_attention.layers\n")
    forget()
    sys.modules.pop("shuffle_attention.layers", None)
    again = pickle.loads(pickled)
    DetectionModel(again.yaml, ch=3, verbose=False).load(again)


def test_attached_attention_is_trained_and_trains_on_in_another_process(settled, forget):
    model = YOLO("plain.yaml", task="detect")
    attach(model.model, "shuffle", where="model.4.cv3.*.0")
    attach(model.model, "se")
    weights = copy.deepcopy(model.model.state_dict())
    train(model, settled)
    trained = model.model.state_dict()
    names = [layer.name for layer in attached(model.model)]
    assert names == ["model.2.m.0.cv2.attention", "model.4.cv3.0.0.attention", "model.4.cv3.1.0.attention"]
    assert trained.keys() == weights.keys()
    assert not torch.equal(trained[f"{names[1]}.cbias"], weights[f"{names[1]}.cbias"])
    x = networks.photographs().float()
    expected = networks.output(model.model, x)
    forget()
    again = YOLO(settled / "runs/run/weights/best.pt").model
    rebuilt = DetectionTrainer.get_model(model.trainer, again.yaml, again, verbose=False)
    assert networks.difference(networks.output(rebuilt.eval(), x), expected) < 1e-6
    rebuilt.fuse(verbose=False)
    assert networks.difference(networks.output(rebuilt, x), expected) < 1e-5
    detach(rebuilt)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "MuSGD"])
def test_gates_are_trained_like_norms(name):
    model = DetectionModel(with_attention(arguments=(4,)), ch=3, verbose=False)
    attach(model, "se")
    gates = [p for key, p in model.named_parameters() if key.startswith("model.3.") or key.endswith(".alpha")]
    assert len(gates) == 7
    optimizer = BaseTrainer.build_optimizer(SimpleNamespace(args=None), model, name)  # pyright: ignore[reportArgumentType]
    groups = [(id(p), g["param_group"], g["lr"]) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(number for number, *_ in groups) == sorted(map(id, model.parameters()))
    assert {tuple(rest) for number, *rest in groups if number in {*map(id, gates)}} == {("bn", 0.001)}


def test_attention_that_training_would_lose_is_refused(settled):
    model = YOLO("plain.yaml", task="detect")
    with pytest.raises(InputError, match=r"model.2.m.0.cv2.bn is replaced when ultralytics fuses model.2.m.0.cv2"):
        attach(model.model, where="*.cv2.bn")
    attach(model.model)
    for pretrained in (False, "other.pt"):
        with pytest.raises(InputError, match=f"pretrained={pretrained} would train without the attention attached at"):
            model.train(data="data.yaml", pretrained=pretrained)
    wider = DetectionModel({**networks.YOLO, "scale": "s"}, ch=3, verbose=False)
    with pytest.raises(InputError, match=r"attention attached to model.2.m.0.cv2, which is not the same"):
        wider.load(model.model)


class Trainer(DetectionTrainer):
    """Attach before the weights are loaded, as version 0.1 asked for."""

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


@pytest.mark.parametrize("form", ["torchscript", "onnx"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_it_exports(settled, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    torch.manual_seed(0)
    model = YOLO("sa.yaml", task="detect")
    attach(model.model, where="model.5.cv3.*.0")
    for layer in model.model.modules():
        if isinstance(layer, ShuffleAttention):
            torch.nn.init.normal_(layer.sweight)
    model.model.eval()
    x = networks.photographs()[:1].float()
    with torch.no_grad():
        expected = model.model(x)[0]
    path = model.export(format=form, imgsz=64, device="cpu", **({"simplify": False} if form == "onnx" else {}))
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
    else:
        output = torch.jit.load(path)(x)
    torch.testing.assert_close(output, expected, rtol=1e-3, atol=1e-3)


def options(folder: Path) -> dict:
    """Return the settings of a training that a test can afford."""
    return {
        "data": str(networks.boxes(folder / "squares")), "epochs": 1, "imgsz": 64, "batch": 3, "workers": 0,
        "device": "cpu", "plots": False, "project": str(folder / "runs"), "name": "run", "amp": False, "verbose": False,
        "optimizer": "SGD", "lr0": 0.1, "warmup_epochs": 0,
    }  # fmt: skip


def train(model: YOLO, folder: Path, **more) -> None:
    model.train(**options(folder), **more)


def test_attached_it_survives_the_fusion_of_norms():
    """ultralytics fuses before it predicts; the attention stands behind what is fused."""
    model = networks.network("ultralytics-yolo")
    report = attach(model)
    assert [row.place for row in report.layers] == ["model.2.m.0.cv2"]
    with torch.no_grad():
        expected = networks.output(model)
        model.fuse(verbose=False)
        assert networks.difference(networks.output(model), expected) < 1e-12
