"""Modules that are replaced after attach: their attention moves along, or an error says that it is lost."""

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
from test_attach import alike, state_of, traces_of, trained
from torch import nn
from torch.nn.utils import parametrizations, prune

from networks import difference, network, output, photographs
from shuffle_attention import attach, detach
from shuffle_attention.errors import InputError

EXACT = 1e-12
CONVERTERS = {"torch": nn.SyncBatchNorm.convert_sync_batchnorm, "timm": timm.layers.convert_sync_batchnorm}


def attended(name: str = "torchvision-resnet", **options) -> nn.Module:
    """Return a model with trained attention that hangs on hooks."""
    model = network(name)
    attach(model, **options)
    return trained(model)


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", ["torchvision-resnet", "torchvision-efficientnet", "ultralytics-yolo", "plain"])
def test_synchronised_norms_keep_their_attention(name, converter):
    model = attended(name)
    with torch.no_grad():
        expected = output(model)
        converted = CONVERTERS[converter](copy.deepcopy(model))
        assert converted.state_dict().keys() == model.state_dict().keys()
        assert difference(output(converted), expected) < EXACT
        duplicate = pickle.loads(pickle.dumps(CONVERTERS[converter](pickle.loads(pickle.dumps(model)))))
        assert difference(output(duplicate), expected) < EXACT
    assert {type(m).__name__ for m in converted.modules()} >= {"SyncBatchNorm"}
    detach(converted)
    plain = CONVERTERS[converter](network(name))
    output(plain)  # some modules keep what they computed
    assert alike(converted.state_dict(), plain.state_dict())
    assert traces_of(converted) == traces_of(plain)


def test_norms_with_an_activation_keep_both_in_timms_conversion():
    model = attended("timm-efficientnet")
    with torch.no_grad():
        assert difference(output(CONVERTERS["timm"](copy.deepcopy(model))), output(model)) < EXACT


def _replace_by_name(model: nn.Module) -> None:
    model.layer1[0].bn2 = nn.BatchNorm2d(64).double().eval()


def _remove(model: nn.Module) -> None:
    del model.layer1[0].bn2


def _replace_in_the_dict(model: nn.Module) -> None:
    model.layer1[0]._modules["bn2"] = nn.Identity()


def _freeze(model: nn.Module) -> None:
    timm.layers.freeze_batch_norm_2d(model)


LOSSES = {
    "replaced": (_replace_by_name, "bn2 of _NarrowBlock is lost.*replaced by BatchNorm2d"),
    "removed": (_remove, "bn2 of _NarrowBlock is lost.*was removed"),
    "replaced in the dict": (_replace_in_the_dict, "replaced by Identity"),
    "frozen": (_freeze, "replaced by FrozenBatchNorm2d"),
}
USES: dict[str, Callable[[nn.Module], object]] = {
    "forward": output,
    "state_dict": lambda model: model.state_dict(),
    "saved": lambda model: torch.save(model.state_dict(), "never.pt"),
    "compiled": lambda model: torch.compile(model, backend="eager")(photographs()),
    "copied": lambda model: output(copy.deepcopy(model)),
    "a part": lambda model: model.layer1(torch.zeros(1, 64, 8, 8, dtype=torch.float64)),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_lost_attention_is_an_error_in_every_use(loss):
    action, message = LOSSES[loss]
    model = attended()
    action(model)
    names = list(USES) if loss == "frozen" else ["forward", "state_dict"]
    if torch.__version__ < "2.12" and "compiled" in names:  # whose compiler replaces errors that it traces by its own
        names.remove("compiled")
    for use in (USES[name] for name in names):
        with torch.no_grad(), pytest.raises(InputError, match=message):
            use(model)
    torch.compiler.reset()
    detach(model)
    assert not [key for key in model.state_dict() if "attention" in key]


def test_a_replaced_stage_is_an_error_too():
    model = attended(where="stage")
    model.layer1[1] = copy.deepcopy(network("torchvision-resnet").layer1[1])
    with pytest.raises(InputError, match="attention after 1 of Sequential is lost.*replaced by _NarrowBlock"):
        output(model)


def test_attention_is_moved_to_another_module_as_the_error_says():
    model, plain = attended(), network("torchvision-resnet")
    with torch.no_grad():
        expected = output(model)
        old, model.layer1[0].bn2 = model.layer1[0].bn2, plain.layer1[0].bn2
        model.layer1[0].bn2.add_module("attention", old.attention)
        assert difference(output(model), expected) < EXACT
    detach(model)
    assert alike(model.state_dict(), state_of(network("torchvision-resnet")))


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


def _wrap(model: nn.Module) -> nn.Module:
    model.layer1[0].bn2 = Wrapper(model.layer1[0].bn2)
    return Wrapper(model)


def _prune(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            prune.identity(module, "weight")
    return model


def _parametrise(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.utils.parametrize.register_parametrization(module, "bias", nn.Identity())
        if isinstance(module, nn.Conv2d):
            parametrizations.weight_norm(module)
    return model


@pytest.mark.parametrize("change", [_wrap, _prune, _parametrise, torch.fx.symbolic_trace, nn.DataParallel])
def test_what_keeps_the_module_keeps_its_attention(change):
    model = attended()
    with torch.no_grad():
        expected = output(model)
        changed = change(model)
        assert difference(output(changed), expected) < EXACT
        assert any(key.endswith("attention.cweight") for key in changed.state_dict())
