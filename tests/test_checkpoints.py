"""Reading weights: all of a file or nothing, and never its code."""

import argparse
import collections
import datetime
import enum
import functools
import math
import os
import pathlib
import pickle
import random
import time
import types
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from shuffle_attention import attach, load_checkpoint
from shuffle_attention.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from shuffle_attention.sanet.tasks.classification.predictor import identify, restore_network


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """The state dict of a network whose every entry differs from a fresh one's."""
    torch.manual_seed(1)
    model = timm.create_model("sa_resnet18")
    return {
        key: value + 1 if not value.is_floating_point() else torch.randn_like(value)
        for key, value in model.state_dict().items()
    }


def small_model() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    return nn.Sequential(OrderedDict(body=body, fc=nn.Linear(8, 4)))


torch.manual_seed(2)
SMALL = {key: torch.randn(value.shape).to(value.dtype) for key, value in small_model().state_dict().items()}


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in SMALL.items()}


class Colour(enum.Enum):
    RED = 1


class Options(dict):
    """A dict with attributes, as several libraries have it."""


class Own:
    def __init__(self):
        self.settings = {"lr": 0.1}


def whole_model() -> nn.Module:
    model = small_model()
    model.load_state_dict(SMALL)
    return model


AVERAGED = {"n_averaged": torch.tensor(5), **under("module.")}
CONTENTS = {
    **{name: {name: SMALL, "epoch": 3} for name in ("model_state_dict", "model", "net", "weights", "params", "my_net")},
    "module.": under("module."),
    "nested": {"ema": {"module": SMALL, "updates": 7}, "model": under("x.")},
    "averaged": AVERAGED,
    "model_ema": {"model": under("x."), "model_ema": AVERAGED, "epoch": 1},
    "lightning": {"state_dict": {**under("model."), "loss.weight": torch.ones(3)}, "pytorch-lightning_version": "2.4"},
    "mm": {"state_dict": {("head." if key[0] == "f" else "backbone.") + key: SMALL[key] for key in SMALL}},
    "compiled": {"state_dict": {key.replace("body.", "body._orig_mod."): SMALL[key] for key in SMALL}},
    "fsdp": {
        key.replace("body.", "_fsdp_wrapped_module.body._checkpoint_wrapped_module."): SMALL[key] for key in SMALL
    },
    "encoder": {**under("encoder."), "projector.0.weight": torch.ones(3)},
    "lightning-ema": {"state_dict": {**{f"net.{key}": -SMALL[key] for key in SMALL}, **under("ema_net.")}},
    "no-counter": {key: value for key, value in SMALL.items() if "num_batches" not in key},
    "half": {key: value.half() if value.is_floating_point() else value for key, value in SMALL.items()},
    "whole-model": whole_model(),
    "model-in-dict": {"model": whole_model(), "epoch": 3},
    "options": Options(state_dict=Options(SMALL)),
    "holders": {
        "state_dict": SMALL,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("x")),
        "more": [
            types.SimpleNamespace(a=1),
            datetime.datetime(2024, 1, 1),
            Colour.RED,
            Own(),
            Own,
            {1, 2},
            frozenset("a"),
        ],
        "counts": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1])],
        "arrays": [np.eye(2), np.float64(0.5), np.array(["a"], object), np.random.default_rng(0)],
        "bytes": [b"abc", bytearray(b"abc"), 2**100, -(2**40), 1j, None, True, slice(1, 2), range(3)],
        "torch": [
            torch.float16,
            torch.device("cpu"),
            torch.Size([1]),
            torch.ones(2).to_sparse(),
            torch.ones(1, device="meta"),
        ],
        "functions": [len, torch.nn.functional.relu],
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("name", CONTENTS)
def test_weights_load_as_people_save_them(tmp_path, name, legacy):
    torch.save(CONTENTS[name], tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    model = small_model()
    report = load_checkpoint(model, tmp_path / "model.pt")
    expected = {key: value.half().to(value.dtype) for key, value in SMALL.items()} if name == "half" else SMALL
    entries = {key: value for key, value in model.state_dict().items() if name != "no-counter" or "num_b" not in key}
    assert all(torch.equal(value, expected[key]) for key, value in entries.items())
    assert report.loaded == len(entries)


def test_what_was_recognised_is_said_in_one_line(tmp_path, caplog):
    caplog.set_level("INFO", "shuffle_attention")
    torch.save(CONTENTS["lightning"], tmp_path / "model.ckpt")
    load_checkpoint(small_model(), tmp_path / "model.ckpt")
    line = "model.ckpt: 9 entries from 'state_dict'; without the prefix 'model.'; 1 not used: loss.weight"
    assert [record.message.partition(f"{tmp_path}/")[2] for record in caplog.records] == [line]


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but in people's files
        return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"student": SMALL, "teacher": SMALL}, "weights under several names: student, teacher"),
        ({**under("student."), **under("teacher.")}, "under several prefixes, student., teacher."),
        (
            {"state_dict": {"0.weight": torch.ones(1), "0.weight.absmax": torch.ones(1)}},
            "quantised weights, as bitsandb",
        ),
        ({"a": quantised()}, "holds quantised tensors"),
        ({"state_dict": {key.replace(".", "_"): SMALL[key] for key in SMALL}}, "does not fit Sequential: 0 of its 9"),
    ],
    ids=["two-networks", "two-prefixes", "bitsandbytes", "quantised", "other-names"],
)
def test_ambiguous_and_quantised_weights_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(small_model(), tmp_path / "model.pt")


def doubled(value, times: int = 40):
    """A container that contains itself twice, again and again."""
    for _ in range(times):
        value = type(value)([value, value])
    return value


def itself() -> list:
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "bomb",
    [
        doubled([1]),
        {doubled((1,), 3): 1},
        functools.reduce(lambda value, _: [value], range(200), 1),
        itself(),
        ["x" * 10_000] * 10_000,
    ],
    ids=["lists", "key", "deep", "cycle", "text"],
)
def test_containers_that_expand_without_end_are_refused_at_once(tmp_path, bomb):
    torch.save({"state_dict": SMALL, "recipe": {"lr": bomb}, "classes": bomb}, tmp_path / "bomb.pt")
    start = time.process_time()
    with pytest.raises(CheckpointError) as error:
        read_checkpoint(tmp_path / "bomb.pt")
    assert time.process_time() - start < 2
    assert len(str(error.value)) < 500


def test_a_model_without_end_is_refused(tmp_path):
    model = nn.Module()
    model._modules = {"a": model, "b": model}
    torch.save({"model": model}, tmp_path / "endless.pt")
    start = time.process_time()
    with pytest.raises(CheckpointError, match="modules of the model in the file have no end"):
        load_checkpoint(small_model(), tmp_path / "endless.pt")
    assert time.process_time() - start < 5


def test_more_classes_than_values_are_refused_before_a_model_is_made(tmp_path):
    torch.save({**read_checkpoint(VERSION_0_1 / "se.pt"), "num_classes": 10**7}, tmp_path / "many.pt")
    with pytest.raises(CheckpointError, match="10000000 classes, and none of its tensors is as large"):
        restore_network(tmp_path / "many.pt")


def test_many_views_of_the_same_values_are_refused(tmp_path):
    values = torch.ones(10**5)
    torch.save({f"a{number}": values[:] for number in range(40)}, tmp_path / "views.pt")
    with pytest.raises(CheckpointError, match=r"tensors that share their content and expand to 2e\+07 bytes"):
        read_checkpoint(tmp_path / "views.pt")
    torch.save({f"a{number}": values[:] for number in range(4)}, tmp_path / "tied.pt")
    assert len(read_checkpoint(tmp_path / "tied.pt")) == 4


def test_a_tensor_that_repeats_a_value_without_end_is_refused(tmp_path):
    torch.save({"a": torch.ones(1).expand(10**12)}, tmp_path / "large.pt")
    with pytest.raises(CheckpointError, match="repeats 1 values"):
        read_checkpoint(tmp_path / "large.pt")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named_and_refused(tmp_path, value):
    weights = {**SMALL, "fc.bias": torch.tensor([1, value, 2, value])}
    torch.save(weights, tmp_path / "nan.pt")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in 1 tensor: fc.bias \(2 of 4\)"):
        load_checkpoint(small_model(), tmp_path / "nan.pt")
    model = small_model()
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))  # as attention masks are
    torch.save({**SMALL, "mask": model.mask}, tmp_path / "mask.pt")
    assert load_checkpoint(model, tmp_path / "mask.pt").loaded == 10


def published(state: dict[str, torch.Tensor], prefix: str) -> dict:
    """Return a checkpoint as the published training script saves it."""
    return {
        "epoch": 100,
        "arch": "sa_resnet18",
        "state_dict": {prefix + key: value for key, value in state.items()},
        "best_acc": torch.tensor(77.7),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
    }


def holds(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before-1.6"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_published_files_load_whole(tmp_path, trained, prefix, legacy):
    path = tmp_path / "model.pth.tar"
    torch.save(published(trained, prefix), path, _use_new_zipfile_serialization=not legacy)
    model = timm.create_model("sa_resnet18")
    report = load_checkpoint(model, path)
    assert (report.loaded, report.weights, report.kept, report.unused) == (170, "state_dict", (), ())
    assert holds(model, trained)


def test_bare_and_safetensors_load_whole(tmp_path, trained):
    torch.save(trained, tmp_path / "bare.pth")
    safetensors.torch.save_file(trained, tmp_path / "bare.safetensors")
    for name in ("bare.pth", "bare.safetensors"):
        model = timm.create_model("sa_resnet18")
        assert load_checkpoint(model, tmp_path / name).loaded == 170
        assert holds(model, trained)


def test_metrics_as_numpy_scalars_do_not_hinder(tmp_path, trained):
    content = {"state_dict": trained, "best_acc": np.float64(77.7), "epoch": np.int64(3), "top5": np.float32(93)}
    torch.save(content, tmp_path / "numpy.pt")
    assert load_checkpoint(timm.create_model("sa_resnet18"), tmp_path / "numpy.pt").loaded == 170


def test_averaged_weights_are_preferred_and_can_be_declined(tmp_path, trained):
    averaged = {key: value * 2 for key, value in trained.items()}
    torch.save({"state_dict": trained, "state_dict_ema": averaged}, tmp_path / "ema.pt")
    model = timm.create_model("sa_resnet18")
    assert load_checkpoint(model, tmp_path / "ema.pt").weights == "state_dict_ema"
    assert holds(model, averaged)
    load_checkpoint(model, tmp_path / "ema.pt", ema=False)
    assert holds(model, trained)
    torch.save({"state_dict": trained}, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="holds no averaged weights"):
        load_checkpoint(model, tmp_path / "plain.pt", ema=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s.pop("layer1.0.sa.cweight"), r"169 of its 170 .* 1 missing: layer1.0.sa.cweight"),
        (lambda s: s.update(extra=torch.ones(1)), r"170 of its 170 .* 1 unexpected: extra"),
        (
            lambda s: s.update({"fc.bias": torch.ones(10)}),
            r"169 of its 170 .* 1 wrongly shaped: fc.bias \(10,\) for \(1000,\)",
        ),
        (
            lambda s: [s.pop(key) for key in list(s) if ".sa." in key and not key.startswith("layer1.0")],
            r"128 of its 170 .* 42 missing: .* and 38 more",
        ),
    ],
    ids=["missing", "unexpected", "reshaped", "attention-in-one-block"],
)
def test_whatever_does_not_fit_is_counted_and_named_and_nothing_loads(tmp_path, trained, spoil, message):
    state = dict(trained)
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / "spoilt.pt")
    model = timm.create_model("sa_resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "spoilt.pt")
    assert holds(model, before)


def test_what_may_differ_is_named_by_the_caller_and_reported(tmp_path, trained):
    torch.save(published(trained, "module."), tmp_path / "model.pth.tar")
    model = timm.create_model("sa_resnet18", num_classes=10)
    head = model.fc.weight.clone()
    report = load_checkpoint(model, tmp_path / "model.pth.tar", may_differ=["fc.*"])
    assert (report.loaded, report.kept) == (168, ("fc.bias", "fc.weight"))
    assert torch.equal(model.fc.weight, head)
    assert torch.equal(model.layer4[1].sa.sbias, trained["layer4.1.sa.sbias"])
    # A head that fits is loaded all the same.
    assert (
        load_checkpoint(timm.create_model("sa_resnet18"), tmp_path / "model.pth.tar", may_differ=["fc.*"]).loaded == 170
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda s: s.update({"fc.bias": s["fc.bias"].to_sparse()}),
            r"other things than dense tensors by name: fc.bias \(sparse tensor\)",
        ),
        (lambda s: s.update({"fc.bias": s["fc.bias"].to("meta")}), "fc.bias float without values for float"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].to(torch.complex64)}), "fc.bias complex for float"),
        (lambda s: s.update({"fc.bias": s["fc.bias"].long()}), "fc.bias integer for float"),
        (lambda s: s.update({"module.fc.bias": s["fc.bias"] + 1}), "1 names stand for two entries: fc.bias"),
        (lambda s: s.update({"fc.bias": None}), r"other things than dense tensors by name: fc.bias \(None\)"),
        (lambda s: s.update({3: torch.ones(1)}), r"other things than dense tensors by name: 3 \(Tensor\)"),
    ],
    ids=["sparse", "meta", "complex", "integer", "twice", "none", "number-as-name"],
)
def test_what_cannot_be_copied_is_refused_before_anything_is(tmp_path, trained, spoil, message):
    state = dict(trained)
    spoil(state)
    torch.save({"state_dict": state}, tmp_path / "odd.pt")
    model = timm.create_model("sa_resnet18")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(model, tmp_path / "odd.pt")
    assert holds(model, before)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, trained, writer):
    content = {"state_dict": trained, "epoch": Payload(tmp_path / "ran")}
    path = tmp_path / "evil.pth.tar"
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="posix.mkdir|written by pickle and not by torch.save"):
        load_checkpoint(timm.create_model("sa_resnet18"), path)
    assert not (tmp_path / "ran").exists()


OTHER_FILES = {
    "empty.pt": (b"", "is empty"),
    "text.pt": (b"not a checkpoint", "is damaged, or a text and not a checkpoint; it begins with 'not a checkpoint'"),
    "text.safetensors": (b"not a checkpoint", "a text and not a checkpoint"),
    "bytes.pt": (bytes(range(200, 256)), "begins with the bytes c8 c9"),
    "pointer.pt": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "page.pth": (b"\n<!DOCTYPE html><title>404</title>", "is a web page"),
    "error.pth": (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is an XML document"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file"),
    "llama.gguf": (b"GGUF" + bytes(99), "quantised weights for llama.cpp"),
    "array.npy": (b"\x93NUMPY" + bytes(99), "is a NumPy array"),
    "model.tar.gz": (b"\x1f\x8b" + bytes(99), "compressed.*unpack it"),
    "model.tar": (bytes(257) + b"ustar" + bytes(99), "archive: unpack it"),
    "model.onnx": (b"\x08\x08" + bytes(99), "model of ONNX"),
    "photo.pt": (b"\x89PNG" + bytes(99), "is an image"),
    "index.json": (
        b'{"weight_map": {"a": "1-of-2.bin", "b": "2-of-2.bin"}}',
        r"index of weights in 2 files \(1-of-2.bin",
    ),
    "other.json": (b'{"a": 1}', "is JSON and not a checkpoint"),
    "pickle.pkl": (pickle.dumps({"a": 1}), "written by pickle and not by torch.save"),
}
OTHER_ZIPS = {
    "script/constants.pkl": "TorchScript archive.*torch.jit.load",
    "archive/serialized_exported_program.json": "program of torch.export",
    "a.npy": "archive of NumPy arrays",
    "model.weights.h5": "Keras model",
    "best.pth": r"zip archive with a checkpoint in it \(best.pth\): unpack it",
    "letter.txt": r"zip archive of something else \(letter.txt\)",
}


@pytest.mark.parametrize("name", [*OTHER_FILES, *OTHER_ZIPS])
def test_other_files_are_named_for_what_they_are(tmp_path, name):
    path = tmp_path / os.path.basename(name)
    if name in OTHER_FILES:
        content, message = OTHER_FILES[name]
        path.write_bytes(content)
    else:
        message = OTHER_ZIPS[name]
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"1")
    with pytest.raises(CheckpointError, match=f"{path.name} was not loaded: it .*{message}"):
        read_checkpoint(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_is_cut_off_is_refused(tmp_path, legacy):
    torch.save(SMALL, tmp_path / "whole.pt", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="cut.pt was not loaded: it is .*cut off"):
        read_checkpoint(tmp_path / "cut.pt")


@pytest.mark.parametrize("ours", [True, False])
def test_a_flipped_bit_never_gives_other_weights(tmp_path, ours):
    path, draw, refused = tmp_path / "model.pt", random.Random(1), 0
    (write_checkpoint if ours else torch.save)(SMALL, path)
    assert torch.load(path).keys() == SMALL.keys()  # others read what we write
    data = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(data)
        damaged[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            content = read_checkpoint(path)
        except CheckpointError:
            refused += 1
        else:  # a date or padding of the zip
            assert all(torch.equal(value, content[key]) for key, value in SMALL.items())
    assert refused == 60 if ours else refused > 10


def test_other_contents_are_refused(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "no-weights.pt")
    with pytest.raises(CheckpointError, match=r"holds no weights: .* it has epoch \(int\)"):
        load_checkpoint(timm.create_model("sa_resnet18"), tmp_path / "no-weights.pt")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "absent.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.pt"
    write_checkpoint({"epoch": 1}, path)
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        write_checkpoint({"epoch": lambda: None}, path)
    assert read_checkpoint(path) == {"epoch": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_the_network_is_known_from_its_weights(tmp_path):
    for name in ("sa_resnet18", "sa_resnet34"):
        model = timm.create_model(name, num_classes=7, in_chans=1)
        assert identify(model.state_dict()).model == name
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in timm.create_model("sa_resnet18").state_dict().items()}},
        tmp_path / "a.pth.tar",
    )
    restored = restore_network(tmp_path / "a.pth.tar")
    assert (restored.recipe.model, restored.num_classes, restored.recipe.img_size) == ("sa_resnet18", 1000, 224)
    assert restored.classes[0] == "n01440764"
    with pytest.raises(CheckpointError, match="not those of an SA-ResNet.*--model"):
        identify(timm.create_model("resnet10t").state_dict())


VERSION_0_1 = Path(__file__).parent / "data/version_0_1"


@pytest.mark.parametrize("name", ["preserved", "published", "se"])
def test_runs_of_version_0_1_with_attached_attention_compute_what_they_did(name):
    """best.pt of `sanet train --attach` with its gates and last norms drawn at random, and the logits there."""
    path = VERSION_0_1 / f"{name}.pt"
    model = restore_network(path).model.eval()
    images = torch.linspace(-40, 40, 4 * 3 * 32 * 32).sin().reshape(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), read_checkpoint(path)["expected"])
    assert "layer1.0.sa.gain" not in model.state_dict()


def test_every_kind_of_layer_that_version_0_1_attached_loads(tmp_path):
    """With its weights folded, without shuffle, and without shuffle and with its output multiplied by a constant."""
    images = torch.linspace(-40, 40, 4 * 3 * 32 * 32).sin().reshape(4, 3, 32, 32)[:1]
    path = VERSION_0_1 / "layers.pt"
    expected = read_checkpoint(path)["expected"]
    for _ in range(2):
        modules = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)]
        model = nn.Sequential(*modules).eval()
        attach(model, where="[124]", groups=2)
        assert load_checkpoint(model, path).started == ()
        with torch.no_grad():
            torch.testing.assert_close(model(images)[:, :, ::7, ::7], expected)
        # Saved under the names of today it loads again.
        path = tmp_path / "today.pt"
        torch.save(model.state_dict(), path)


def test_an_output_that_only_version_0_1_multiplied_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    attach(model, "se", where="1", start="published")
    torch.save({**model.state_dict(), "1.attention.start_scale": torch.tensor(2.0)}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="1.attention multiplies its output by 2.000, as only version 0.1"):
        load_checkpoint(model, tmp_path / "old.pt")
