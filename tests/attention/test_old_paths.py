"""Import paths of version 0.1, and a file whose pickled modules name them.

``data/version_0_1/modules.pt`` was written by version 0.1.0 with ``torch.save``: a layer of each class and a block,
with random weights in float64, an input and the outputs.
"""

import importlib
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch

import shuffle_attention
from shuffle_attention.attention.old_paths import MOVED
from shuffle_attention.errors import InputError

FILE = Path(__file__).parents[1] / "data/version_0_1/modules.pt"
# Names that users had reason to import.
NAMES = {
    "layers": "ShuffleAttention SpatialGroupEnhance fitting_groups largest_groups",
    "ablation": "ShuffleAttentionAblation",
    "attention": "attention_names create_attention",
    "ops": "shuffle_attention",
    "models": "SABasicBlock SABottleneck SAResNet small_input_stem sa_resnet18 sa_resnet50",
    "families": "AttentionResNet resnet_with sge_resnet50",
    "shufflenet": "ShuffleNetV2 shufflenet_v2_x1_0",
    "fusing": "block_tail can_fuse",
    "surgery": "attach detach AttachReport",
    "detection": "create_detector ARCHITECTURES",
    "network": "create_network",
}


def forget_old_modules() -> None:
    for name in MOVED:
        sys.modules.pop(f"shuffle_attention.{name}", None)


@pytest.fixture(autouse=True)
def old_modules_warn_again():
    forget_old_modules()
    yield
    forget_old_modules()


@pytest.mark.parametrize("module", NAMES)
def test_old_names_are_found(module):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        old = importlib.import_module(f"shuffle_attention.{module}")
    for name in NAMES[module].split():
        assert callable(getattr(old, name)) or name == "ARCHITECTURES"
    assert [w.category for w in caught] == [DeprecationWarning] * (module in MOVED)


def test_the_old_module_of_yolo_registers_the_row():
    pytest.importorskip("ultralytics", reason="the extra yolo is not installed", exc_type=ImportError)
    with pytest.warns(DeprecationWarning, match=r"shuffle_attention\.yolo is now shuffle_attention\.models\.yolo"):
        from shuffle_attention.yolo import register
    register()
    assert "ShuffleAttention" in vars(importlib.import_module("ultralytics.nn.tasks"))


@pytest.mark.filterwarnings("ignore:shuffle_attention:DeprecationWarning")
def test_pickled_models_with_attention_attached_by_version_0_1_are_refused_with_advice():
    """Not as a missing module, which ultralytics would try to install."""
    with pytest.raises(InputError, match=r"version 0\.1 attached attention.*torch\.save\(model\.state_dict\(\)"):
        pickle.loads(b"\x80\x02cshuffle_attention.surgery.attachment\nAttachment\n.")


@pytest.mark.filterwarnings("ignore:shuffle_attention:DeprecationWarning")
def test_modules_pickled_by_version_0_1_compute_what_they_did():
    content = torch.load(FILE, weights_only=False)
    assert b"shuffle_attention.layers" in FILE.read_bytes()
    assert type(content["modules"]["layer"]) is shuffle_attention.ShuffleAttention
    for name, module in content["modules"].items():
        torch.testing.assert_close(module(content["input"]), content["outputs"][name], rtol=1e-12, atol=1e-12)
        assert repr(module)
        module.load_state_dict(module.state_dict())
