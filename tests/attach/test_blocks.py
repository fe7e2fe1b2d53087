"""Residual blocks that timm, torchvision and transformers define: attention inside the block, and the fused op."""

import copy
import pickle
from collections.abc import Callable
from unittest import mock

import pytest
import timm
import timm.models.resnet
import timm.optim
import torch
import torchvision
from test_attach import alike, state_of, traces_of, trained
from timm.layers import DropPath
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn.utils import prune
from transformers import ResNetConfig, ResNetForImageClassification
from transformers.models.resnet.modeling_resnet import ResNetBasicLayer, ResNetBottleNeckLayer

from networks import difference, network, output, photographs
from shuffle_attention import ShuffleAttention, attach, detach, gate_names, load_checkpoint
from shuffle_attention.errors import InputError
from shuffle_attention.models import fused_block

EXACT = 1e-12


def _shortcut(stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 16, 1, stride, bias=False), nn.BatchNorm2d(16))


def _huggingface(kind: str) -> Callable[[], nn.Module]:
    config = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [2, 1], "layer_type": kind}
    return lambda: ResNetForImageClassification(ResNetConfig(num_labels=5, **config))


def _two(block: Callable, **options) -> Callable[[], nn.Module]:
    """Return a function that creates a model of two blocks, one with a convolution in its shortcut."""
    width = 16 // block.expansion
    return lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        block(8, width, stride=2, downsample=_shortcut(2), **options),
        block(16, width, **options),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


MODELS = {
    "timm-basic": _two(timm.models.resnet.BasicBlock),
    "timm-basic-drop-path": _two(timm.models.resnet.BasicBlock, drop_path=DropPath(0.5)),
    "timm-bottleneck": _two(timm.models.resnet.Bottleneck, cardinality=2),
    "torchvision-basic": _two(torchvision.models.resnet.BasicBlock),
    "torchvision-bottleneck": _two(torchvision.models.resnet.Bottleneck),
    "huggingface-basic": _huggingface("basic"),
    "huggingface-bottleneck": _huggingface("bottleneck"),
}
CLASSES = {
    *(timm.models.resnet.BasicBlock, timm.models.resnet.Bottleneck, ResNetBasicLayer, ResNetBottleNeckLayer),
    *(torchvision.models.resnet.BasicBlock, torchvision.models.resnet.Bottleneck),
}


def create(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Return a model in evaluation mode with norms that differ."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    return model.to(dtype).eval()


def one_by_one(model: nn.Module, x: Tensor | None = None) -> Tensor:
    """Return what the model computes without the fused op."""
    with mock.patch.object(fused_block, "has_kernels", return_value=False):
        return output(model, x)


def test_all_classes_are_tested():
    from shuffle_attention.attach.insert import BLOCKS

    assert {f"{cls.__module__}.{cls.__qualname__}" for cls in CLASSES} == BLOCKS.keys()


@pytest.mark.parametrize("name", MODELS)
class TestEachBlock:
    def test_it_runs_fused_under_the_published_names(self, name):
        model = create(name)
        with torch.no_grad():
            expected = output(model)
            report = attach(model)
            assert all(row.fused and row.name.endswith(".sa") for row in report.layers)
            assert [row.name for row in report.layers] == [
                n for n, m in model.named_modules() if isinstance(m, ShuffleAttention)
            ]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
                assert difference(output(model), expected) < EXACT
            calls = {event.key: event.count for event in profile.key_averages()}
            blocks = [model.get_submodule(row.name.removesuffix(".sa")) for row in report.layers]
            norms = [m for block in blocks for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
            ops = [count for key, count in calls.items() if key.startswith("shuffle_attention::block_tail")]
            assert sum(ops) == len(norms) > len(blocks)
            assert "shuffle_attention::shuffle_attention" not in calls
            trained(model)
            assert difference(output(model), one_by_one(model)) < EXACT
            assert difference(output(model), expected) > 1e-4

    def test_it_learns_as_it_does_one_by_one(self, name):
        model = create(name)
        attach(model)
        trained(model).train()
        for module in model.modules():
            if isinstance(module, DropPath):
                module.eval()
        twin = copy.deepcopy(model)
        output(model).square().sum().backward()
        one_by_one(twin).square().sum().backward()
        for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11, msg=key)
        for p, q in zip(model.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(p, q)

    def test_it_copies_pickles_and_detaches(self, name):
        model = create(name)
        state, traces = state_of(model), traces_of(model)
        attach(model)
        trained(model)
        duplicate = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        with torch.no_grad():
            assert torch.equal(output(duplicate), output(model))
            for module in duplicate.modules():
                if isinstance(module, ShuffleAttention):
                    nn.init.zeros_(module.cbias)
            assert not torch.equal(output(duplicate), output(model))
        for each in (duplicate, model):
            detach(each)
            assert alike(each.state_dict(), state)
            assert traces_of(each) == traces

    def test_it_compiles_and_exports(self, name):
        model, x = create(name), photographs()
        attach(model)
        trained(model)
        with torch.no_grad():
            expected = output(model, x)
            assert difference(output(torch.compile(model, backend="eager", fullgraph=True), x), expected) < EXACT
            program = torch.export.export(model, (x,))
            assert difference(output(program.module(), x), expected) < EXACT
        torch.compiler.reset()

    def test_hooks_see_every_module(self, name):
        model = create(name)
        report = attach(model)
        trained(model)
        with torch.no_grad():
            expected = output(model)
            called = []
            for key, module in model.named_modules():
                module.register_forward_hook(lambda module, args, y, key=key: called.append(key))
            assert difference(output(model), expected) < EXACT
        ran = {row.place for row in report.layers} | {row.name for row in report.layers}
        assert ran <= set(called)

    def test_attaching_twice_is_refused(self, name):
        model = create(name)
        attach(model)
        for where in ("residual", "last"):
            with pytest.raises(InputError, match=r"attention is attached already.*\.sa"):
                attach(model, where=where)

    def test_synchronised_and_pruned_it_keeps_its_attention(self, name):
        model = create(name)
        attach(model)
        trained(model)
        with torch.no_grad():
            expected = output(model)
            assert difference(output(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))), expected) < EXACT
            for module in list(model.modules()):
                if isinstance(module, ShuffleAttention):
                    prune.identity(module, "cweight")
                    prune.identity(module.gn, "weight")
                if isinstance(module, nn.Conv2d):
                    prune.identity(module, "weight")
            assert difference(output(model), expected) < EXACT


@pytest.mark.parametrize("name", ["timm-basic", "torchvision-bottleneck"])
def test_traced_and_fused_by_fx_it_computes_the_same(name):
    model, x = create(name), photographs()
    attach(model)
    trained(model)
    with torch.no_grad():
        expected = output(model)
        assert difference(torch.fx.symbolic_trace(model)(x), expected) < EXACT
        assert difference(fuse(model)(x), expected) < EXACT


def test_fx_fusion_leaves_norms_with_attention_alone():
    model, x = network("torchvision-resnet"), photographs()
    attach(model)
    trained(model)
    with torch.no_grad():
        assert difference(fuse(model)(x), output(model)) < EXACT


def test_from_pretrained_gives_the_plain_model(tmp_path):
    model, x = create("huggingface-basic", torch.float32), photographs().float()
    with torch.no_grad():
        attach(model)
        expected = output(model, x)
        model.save_pretrained(tmp_path)
        assert difference(output(type(model).from_pretrained(tmp_path).eval(), x), expected) < 1e-5


def test_two_attentions_in_one_block_are_kept_apart(tmp_path):
    """One before the addition, one after the block: their entries have different names."""
    model = create("timm-basic")
    state, traces = state_of(model), traces_of(model)
    with torch.no_grad():
        expected = output(model)
        assert [row.name for row in attach(model).layers] == ["1.sa", "2.sa"]
        assert [row.name for row in attach(model, where="stage").layers] == ["2.attention"]
        assert difference(output(model), expected) < EXACT
        trained(model)
        expected = output(model)
        assert torch.equal(output(pickle.loads(pickle.dumps(model))), expected)
        compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
        assert difference(output(compiled), expected) < EXACT
    torch.compiler.reset()
    detach(model)
    assert alike(model.state_dict(), state)
    assert traces_of(model) == traces


def test_altered_blocks_get_hooks():
    class Mine(torchvision.models.resnet.BasicBlock):
        pass

    blocks = {
        "subclass": _two(Mine)(),
        "forward": create("timm-basic"),
        "se": _two(timm.models.resnet.BasicBlock, attn_layer="se")(),
    }
    for block in (blocks["forward"][1], blocks["forward"][2]):
        block.forward = block.forward
    for model in blocks.values():
        with torch.no_grad():
            expected = output(model.double().eval())
            report = attach(model)
            assert difference(output(model), expected) < EXACT
        assert all(row.name.endswith(".attention") and not row.fused for row in report.layers)


@pytest.mark.parametrize("attention", ["se", "sge", "gc"])
def test_other_attentions_are_children_of_the_block_as_well(attention):
    model = create("torchvision-basic")
    with torch.no_grad():
        expected = output(model)
        report = attach(model, attention)
        assert difference(output(model), expected) < EXACT
    assert [(row.name, row.fused) for row in report.layers] == [("1.sa", False), ("2.sa", False)]


def test_globs_of_the_last_norm_mean_the_same_as_residual():
    model, other = create("torchvision-bottleneck"), create("torchvision-bottleneck")
    attach(model, where="*.bn3")
    attach(other)
    assert list(model.state_dict()) == list(other.state_dict())
    report = attach(create("torchvision-bottleneck"), where="*.bn2", groups=2)
    assert [(row.name, row.fused) for row in report.layers] == [("1.bn2.attention", False), ("2.bn2.attention", False)]


def test_weights_of_an_sa_resnet_load_into_an_attached_resnet(tmp_path):
    torch.manual_seed(0)
    options = {"channels": [16, 16, 32, 32], "stem_type": "deep", "stem_width": 8}
    expected = timm.create_model("sa_resnet18", **options).double().eval()
    model = timm.create_model("resnet18", **options).double().eval()
    trained(expected)
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    attach(model)
    torch.save(expected.state_dict(), tmp_path / "sa.pt")
    assert len(load_checkpoint(model, tmp_path / "sa.pt").switched) == 8
    with torch.no_grad():
        assert difference(output(model), output(expected)) < EXACT
    assert list(model.state_dict()) == list(expected.state_dict())


def test_gates_are_left_out_of_weight_decay_and_alpha_too():
    model = create("torchvision-basic")
    attach(model)
    names = gate_names(model)
    assert len(names) == 12
    assert {name.split(".sa.")[0] for name in names} == {"1", "2"}
    other = create("torchvision-basic")
    attach(other, "se")
    groups = timm.optim.param_groups_weight_decay(other, 0.1)
    (decayed,) = [group["params"] for group in groups if group["weight_decay"]]
    assert not any(p is q for p in decayed for n, q in other.named_parameters() if n.endswith("alpha"))


def test_a_parametrised_block_is_not_detached_in_part():
    model = create("torchvision-basic")
    attach(model)
    model[1].register_parameter("scale", nn.Parameter(torch.ones(1)))
    nn.utils.parametrize.register_parametrization(model[1], "scale", nn.Identity())
    with pytest.raises(InputError, match="ParametrizedBasicBlock is a class that was made after attention"):
        detach(model)
    nn.utils.parametrize.remove_parametrizations(model[1], "scale")
    detach(model)
    assert type(model[1]) is torchvision.models.resnet.BasicBlock


@pytest.mark.parametrize("name", MODELS)
def test_attached_none_fuses_a_plain_model_and_leaves_nothing_behind(name):
    model, plain = create(name), create(name)
    state, traces = state_of(model), traces_of(model)
    report = attach(model, "none")
    assert report.parameters == 0
    assert all(row.fused for row in report.layers)
    assert alike(model.state_dict(), state)
    for each in (model, plain):
        for module in each.train().modules():
            if isinstance(module, DropPath):
                module.eval()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profile:
        y = output(model)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["shuffle_attention::block_tail"] > 2 * len(report.layers)
    expected = output(plain)
    assert difference(y, expected) < EXACT
    y.square().sum().backward()
    expected.square().sum().backward()
    for (key, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-11, msg=key)
    detach(model)
    assert traces_of(model.eval()) == traces
    model.load_state_dict(state)
    with torch.no_grad():
        assert torch.equal(output(model), output(create(name)))
