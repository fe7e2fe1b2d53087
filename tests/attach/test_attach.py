"""Attention attached to models of many families: what they compute and load, and how it is removed."""

import copy
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from networks import NETWORKS, Plain, difference, network, output, photographs
from shuffle_attention import ShuffleAttention, attach, attention_names, detach, load_checkpoint
from shuffle_attention.attention import Blend
from shuffle_attention.errors import InputError

EXACT = 1e-12  # relative, of the outputs of float64


def attentions(model: nn.Module) -> list[ShuffleAttention]:
    return [module for module in model.modules() if isinstance(module, ShuffleAttention)]


def trained(model: nn.Module) -> nn.Module:
    """Return the model with random gates."""
    torch.manual_seed(3)
    for module in attentions(model):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model


def alike(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(state) == list(other) and all(torch.equal(value, other[key]) for key, value in state.items())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def traces_of(model: nn.Module) -> list[tuple]:
    """Return everything that attaching could leave behind in modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_load_state_dict_pre_hooks", "_state_dict_pre_hooks")
    return [(name, type(m), *(len(getattr(m, h)) for h in hooks), set(vars(m))) for name, m in model.named_modules()]


@pytest.mark.parametrize("name", NETWORKS)
class TestEachFamily:
    def test_identity_start_keeps_outputs_and_published_start_does_not(self, name):
        model, other = network(name), network(name)
        with torch.no_grad():
            expected = output(model)
            report = attach(model)
            assert difference(output(model), expected) < EXACT
            attach(other, start="published")
            assert difference(output(other), expected) > 1e-2
        assert len(report.layers) == len(attentions(model)) > 0
        assert report.parameters == sum(p.numel() for m in attentions(model) for p in m.parameters())
        assert {row.name for row in report.layers} == {
            name for name, module in model.named_modules() if isinstance(module, ShuffleAttention)
        }
        assert {row.start for row in report.layers} == {"identity by gain"}
        assert not any(module.shuffle for module in attentions(model))

    def test_it_computes_the_same_in_training_mode_and_learns(self, name):
        model, plain = network(name).train(), network(name).train()
        for module in (*model.modules(), *plain.modules()):
            if isinstance(module, nn.Dropout) or type(module).__name__ in ("StochasticDepth", "DropPath"):
                module.eval()
        attach(model)
        y, expected = output(model), output(plain)
        assert difference(y, expected) < EXACT
        y.square().sum().backward()
        for module in attentions(model):
            for gate in (module.cbias, module.sbias, module.cweight, module.sweight):
                assert gate.grad is not None
                assert gate.grad.isfinite().all()
                assert gate.grad.abs().max() > 0

    def test_own_weights_keep_their_names_and_values(self, name):
        model = network(name)
        state = state_of(model)
        attach(model)
        after = model.state_dict()
        assert alike({key: value for key, value in after.items() if key in state}, state)
        assert {re.split(r"\.(?:sa|attention)\.", key)[-1] for key in set(after) - set(state)} == {
            *("cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias", "gain")
        }

    def test_weights_load_with_attention_and_without(self, name, tmp_path):
        model, plain, other = network(name), network(name), network(name)
        attach(model)
        trained(model)
        attach(other)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(output(other), output(model))
        torch.save(plain.state_dict(), tmp_path / "plain.pth")
        report = load_checkpoint(model, tmp_path / "plain.pth")
        assert len(report.started) == len(attentions(model))
        assert report.loaded == len(plain.state_dict())
        assert not report.switched
        with torch.no_grad():
            assert difference(output(model), output(plain)) < EXACT
            # Loaded without strictness into the plain model, weights with attention at its start leave that model.
            plain.load_state_dict(model.state_dict(), strict=False)
            assert difference(output(model), output(plain)) < EXACT

    def test_detached_it_is_what_it_was(self, name):
        model = network(name)
        state, traces = state_of(model), traces_of(model)
        attach(model)
        trained(model)
        detach(model)
        assert alike(model.state_dict(), state)
        assert traces_of(model) == traces

    def test_compiled_whole_and_copied_it_computes_the_same(self, name):
        model = network(name)
        attach(model)
        trained(model)
        duplicate = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            expected = output(model)
            assert difference(output(compiled), expected) < EXACT
            assert torch.equal(output(duplicate), expected)
        for module in attentions(duplicate):  # not shared with the original
            nn.init.zeros_(module.cbias)
        with torch.no_grad():
            assert difference(output(duplicate), expected) > 1e-4
            assert torch.equal(output(model), expected)
        detach(duplicate)
        assert attentions(model)
        assert not attentions(duplicate)
        torch.compiler.reset()


def gate(channels: int) -> nn.Module:
    """Return an attention of a user."""
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Tanh())


@pytest.mark.parametrize("attention", [*attention_names(), gate], ids=[*attention_names(), "callable"])
@pytest.mark.parametrize("where", ["residual", "stage", "last"])
def test_every_attention_starts_as_the_identity_and_learns(attention, where, tmp_path):
    model = network("plain")
    state = state_of(model)
    torch.save(state, tmp_path / "plain.pt")
    with torch.no_grad():
        expected = output(model)
        report = attach(model, attention, where=where)
        assert difference(output(model), expected) < EXACT
    if attention != "none":
        model.train()
        output(model).square().sum().backward()
        grads = {n: p.grad for n, p in model.named_parameters() if ".attention." in n}
        assert any(grad is not None and grad.abs().max() > 0 for grad in grads.values())
        assert all(grad.abs().max() > 0 for name, grad in grads.items() if name.endswith("alpha"))
        model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".attention." in name:
                    parameter.add_(0.5)
            assert difference(output(model), expected) > 1e-4
    assert len(load_checkpoint(model, tmp_path / "plain.pt").started) == len(report.layers) * (attention != "none")
    with torch.no_grad():
        assert difference(output(model), expected) < EXACT
    detach(model)
    assert list(model.state_dict()) == list(state)


def test_an_attention_without_identity_start_is_blended_in():
    model = network("plain")
    report = attach(model, gate, where="norm2")
    assert [(row.start, row.parameters, row.groups) for row in report.layers] == [
        ("identity by alpha", 16 * 17 + 1, None)
    ]
    blend = model.norm2.attention
    assert isinstance(blend, Blend)
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    nn.init.constant_(blend.alpha, 0.25)
    torch.testing.assert_close(blend(x), 0.75 * x + 0.25 * blend.layer(x))
    blend.layer.float()
    assert blend(x.float()).dtype == torch.float32  # alpha has another type


def test_an_attention_of_another_shape_is_refused():
    """A gate of shape (B, C, 1, 1) would be added to the map by broadcasting."""
    model = network("plain")
    state, traces = state_of(model), traces_of(model)
    with pytest.raises(InputError, match=r"norm2.attention returns \(1, 16, 1, 1\) for a map of \(1, 16, 32, 32\)"):
        attach(model, lambda channels: nn.AdaptiveAvgPool2d(1))
    assert alike(model.state_dict(), state)
    assert traces_of(model) == traces


def test_preserve_is_the_old_name_of_start():
    for preserve, start in ((True, "identity by gain"), (False, "published")):
        assert {row.start for row in attach(network("plain"), preserve=preserve).layers} == {start}


@pytest.mark.parametrize("name", ["timm-resnext", "timm-efficientnet", "torchvision-efficientnet"])
def test_in_single_precision_the_difference_is_one_of_rounding(name):
    model = network(name).float()
    with torch.no_grad():
        expected = output(model, photographs().float())
        attach(model)
        assert difference(output(model, photographs().float()), expected) < 1e-5


PLACES = {
    "residual": [f"layer{block}.bn2" for block in ("1.0", "1.1", "2.0", "3.0", "3.1", "4.0")],
    "stage": ["layer1.1", "layer2.0", "layer3.1", "layer4.0"],
    "last": ["layer1.1.bn2", "layer2.0.bn2", "layer3.1.bn2", "layer4.0.bn2"],
    "layer[12]*.bn1": ["layer1.0.bn1", "layer1.1.bn1", "layer2.0.bn1"],
    "layer[34]": ["layer3.1", "layer4.0"],  # a Sequential stands for its last module
}


@pytest.mark.parametrize("where", PLACES)
def test_where(where):
    model = network("torchvision-resnet")
    with torch.no_grad():
        expected = output(model)
        report = attach(model, where=where)
        assert [row.place for row in report.layers] == PLACES[where]
        assert difference(output(model), expected) < EXACT


def test_a_pooled_map_is_no_stage():
    maps = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*maps, nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Flatten())
    with pytest.raises(InputError, match="no map with two convolutions"):
        attach(model, where="stage", groups=2)
    maps[0].padding = maps[1].padding = 1
    assert [row.place for row in attach(model, where="stage", groups=2).layers] == ["1"]


def test_where_may_be_a_predicate():
    model = network("torchvision-resnet")
    report = attach(model, where=lambda name, module: isinstance(module, nn.BatchNorm2d) and module.num_features == 512)
    assert [(row.place, row.groups) for row in report.layers] == [("layer4.0.bn2", 64), ("layer4.0.downsample.1", 64)]


def test_the_report_is_a_table():
    text = str(attach(Plain()))
    assert text.splitlines()[0].split() == "name after channels groups parameters start fused".split()
    assert "norm2.attention  BatchNorm2d norm2        16       8           6  identity by gain  no" in text
    assert text.splitlines()[-1] == "shuffle: 2 layers, 12 parameters"


class SharedParameters(nn.Module):
    """One convolution before two norms, as weight tying has it, and two results."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.first(x)
        return self.norm2(self.second(self.norm1(u))) + u, u


def test_shared_parameters_and_further_results_keep_their_values():
    model = SharedParameters().double().eval()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = model(x)
    attach(model, where="norm*", groups=2)
    for y, z in zip(model(x), expected, strict=True):
        assert difference(y, z) < EXACT


class LooksAtItsOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.score = self.gate(y.mean((2, 3)))
        return y


def test_layers_attached_in_several_calls_are_removed_together():
    model = network("plain")
    state = state_of(model)
    with torch.no_grad():
        expected = output(model)
        attach(model, where="norm2", groups=2)
        attach(model, where="conv2", groups=4)
        attach(model, "se", where="conv4", rd_ratio=0.5)
        assert difference(output(model), expected) < EXACT
    detach(model)
    assert alike(model.state_dict(), state)


def test_weights_of_a_head_do_not_change_the_rest(tmp_path):
    model = network("torchvision-resnet")
    attach(model)
    trained(model)
    state = state_of(model)
    head = {key: value for key, value in state.items() if key.startswith("fc.")}
    model.load_state_dict(head, strict=False)
    assert alike(model.state_dict(), state)


class TwoNames(nn.Module):
    """A convolution and a norm that are registered by themselves and in a container."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.stem = nn.Sequential(self.conv, self.norm)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)))


def test_plain_weights_load_under_each_name_of_a_module(tmp_path):
    model, x = TwoNames().double().eval(), photographs(16)
    state = state_of(model)
    torch.save(state, tmp_path / "plain.pth")
    with torch.no_grad():
        expected = model(x)
        attach(model, where="norm", groups=2)
        trained(model)
        load_checkpoint(model, tmp_path / "plain.pth")
        assert difference(model(x), expected) < EXACT
    detach(model)
    assert alike(model.state_dict(), state)


def test_a_checkpoint_that_does_not_fit_changes_nothing(tmp_path):
    model = network("plain")
    attach(model)
    trained(model)
    state = state_of(model)
    plain = {key: value + 1 for key, value in network("plain").state_dict().items() if key != "head.weight"}
    torch.save(plain, tmp_path / "plain.pth")
    with pytest.raises(InputError, match="missing: head.weight"):
        load_checkpoint(model, tmp_path / "plain.pth")
    assert alike(model.state_dict(), state)


@pytest.mark.parametrize(("name", "child"), [("plain", "norm2.attention"), ("timm-resnet", "layer1.0.sa")])
def test_one_start_never_loads_into_the_other_without_a_word(name, child, tmp_path):
    identity, published = network(name), network(name)
    attach(identity)
    attach(published, start="published")
    trained(identity)
    trained(published)
    for one, other in ((identity, published), (published, identity)):
        with pytest.raises(RuntimeError, match=f"{child}.gain"):
            one.load_state_dict(other.state_dict())
    with torch.no_grad():
        for one, other in ((identity, published), (copy.deepcopy(published), network(name))):
            expected = output(one)
            torch.save(one.state_dict(), tmp_path / "weights.pt")
            if other is not published:
                attach(other)
            assert child in load_checkpoint(other, tmp_path / "weights.pt").switched
            assert difference(output(other), expected) < EXACT
            assert not load_checkpoint(other, tmp_path / "weights.pt").switched


def test_a_blended_layer_takes_the_published_start_of_a_file(tmp_path):
    blended, published = network("plain"), network("plain")
    attach(blended, "se")
    attach(published, "se", start="published")
    with torch.no_grad():
        expected = output(published)
        torch.save(published.state_dict(), tmp_path / "published.pt")
        assert load_checkpoint(blended, tmp_path / "published.pt").switched == ("norm2.attention", "conv4.attention")
        assert difference(output(blended), expected) < EXACT


def test_a_published_start_is_not_added_to_plain_weights(tmp_path):
    model, plain = network("plain"), network("plain")
    attach(model, groups=2, start="published")
    with pytest.raises(RuntimeError, match="norm2.attention.cweight"):
        model.load_state_dict(plain.state_dict())
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match="norm2.attention.cweight"):
        load_checkpoint(model, tmp_path / "plain.pt")


def test_types_and_layouts_follow_the_network():
    model = network("torchvision-resnet").to(torch.bfloat16)
    attach(model, where="stage")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.bfloat16, torch.int64}  # those of norms, which count batches
    model = model.float().to(memory_format=torch.channels_last)
    y = model(photographs().float().contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.float32
    assert all(not module.training for module in attentions(model))
    model.train()
    assert all(module.training for module in attentions(model))


def test_synchronised_before_attaching_it_keeps_its_attention():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network("torchvision-resnet"))
    with torch.no_grad():
        expected = output(model)
        report = attach(model)
        assert difference(output(model), expected) < EXACT
    assert {row.module for row in report.layers} == {"SyncBatchNorm"}


def test_looking_leaves_nothing_behind():
    """Buffers, modes, hooks and random numbers are as before, whether it succeeds or not."""
    model = network("torchvision-resnet").train()
    model.layer1.eval()
    state, traces, modes = state_of(model), traces_of(model), [m.training for m in model.modules()]
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    for wrong in ({"groups": 7}, {"where": "nothing"}, {"where": "fc"}, {"example": torch.zeros(1, 5, 8, 8)}):
        with pytest.raises(InputError):
            attach(model, **wrong)
    assert torch.equal(torch.get_rng_state(), expected)
    assert alike(model.state_dict(), state)
    assert traces_of(model) == traces
    assert [m.training for m in model.modules()] == modes
    attach(model, where="stage")
    detach(model)
    assert traces_of(model) == traces
    assert [m.training for m in model.modules()] == modes


class IteratesChildren(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.children():
            x = module(x)
        return x


def attached_twice(model: nn.Module) -> None:
    attach(model)
    attach(model)


def compiled(model: nn.Module) -> None:
    attach(torch.compile(model, backend="eager"))


def compiled_in_part(model: nn.Module) -> None:
    model.layer1 = torch.compile(model.layer1, backend="eager")
    attach(model)


def kept_for_backward() -> nn.Module:
    model = nn.Sequential(LooksAtItsOutput())
    model(photographs(16).float())
    return model


RESNET: Callable[[], nn.Module] = lambda: network("torchvision-resnet")  # noqa: E731
ERRORS = {
    "unknown attention": (RESNET, lambda m: attach(m, "shufle"), "did you mean shuffle"),
    "unknown option": (RESNET, lambda m: attach(m, "se", group=8), "'se' has no option group"),
    "one of several globs matches nothing": (
        RESNET,
        lambda m: attach(m, where=["layer1.0.bn2", "layer*.bn4"]),
        r"where='layer\*.bn4' matches no module",
    ),
    "matches nothing": (RESNET, lambda m: attach(m, where="layer*.bn4"), "matches no module.*names like 'layer4'"),
    "like a preset": (RESNET, lambda m: attach(m, where="stages"), "'stage' \\(after.*names like 'stage'"),
    "not a where": (RESNET, lambda m: attach(m, where=3), "globs or a predicate"),
    "a class": (RESNET, lambda m: attach(m, where=nn.BatchNorm2d), "a predicate.*where=lambda name, module: isinst"),
    "a module": (RESNET, lambda m: attach(m, where=m.layer1), "globs or a predicate"),
    "unknown start": (RESNET, lambda m: attach(m, start="zero"), "start must be 'identity' or 'published', got 'zero'"),
    "cannot be copied": (kept_for_backward, lambda m: attach(m, where="0"), "must be copied.*under torch.no_grad"),
    "compiled in part": (RESNET, compiled_in_part, "layer1 is compiled already"),
    "shared module": (RESNET, lambda m: attach(m, where="*.relu"), "layer1.0.relu is called 2 times"),
    "no map": (RESNET, lambda m: attach(m, where="fc"), r"fc returns \(1, 5\), which is not a map"),
    "groups": (RESNET, lambda m: attach(m, groups=64), "groups=64.*32.*groups='auto' fits"),
    "attached twice": (RESNET, attached_twice, "layer1.0.bn2.*attention is attached already"),
    "nothing attached": (RESNET, detach, "nothing is attached to ResNet"),
    "compiled": (RESNET, compiled, "attach before wrapping"),
    "no convolution": (lambda: nn.Sequential(nn.Linear(4, 4)), attach, "no convolution.*example="),
    "no addition": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        attach,
        "has no residual addition; where='stage'",
    ),
    "wrong input": (lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3)), attach, "did not run on zeros"),
    "channels last": (
        lambda: network("torchvision-convnext"),
        lambda m: attach(m, where="*.block.5"),
        "channels in the last dimension",
    ),
    "children of its own": (
        lambda: nn.Sequential(IteratesChildren(), nn.ReLU()),
        lambda m: attach(m, where="0", groups=2),
        "attention cannot be attached: 0.attention runs 2 times.* The model is as it was",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_would_work(case):
    build, action, message = ERRORS[case]
    model = build()
    with pytest.raises(InputError, match=message):
        action(model)
    if case != "attached twice":
        assert not attentions(model)


def test_another_input_finds_places_where_the_usual_one_does_not():
    model = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 4, 3))
    assert attach(model, where="1", groups=2, example=torch.zeros(1, 3, 16, 16)).layers[0].channels == 4
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4))
    assert attach(model, where="1").layers[0].groups == 2


def test_swapped_operands_and_wrong_additions():
    """Feature pyramids and bias-like sums are not residual; a sum in place, or the other way round, is."""

    class Sums(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.norm2(self.conv2(self.conv1(x)))
            z = self.project(x)
            z += y
            return z + y.mean((2, 3), keepdim=True)

    assert [row.place for row in attach(Sums(), groups=2).layers] == ["norm2"]
