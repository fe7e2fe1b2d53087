"""Attention in other people's networks: what they compute, what they load, what is done with them, and getting out."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from networks import NETWORKS, Plain, difference, network, output, photographs
from shuffle_attention import ShuffleAttention, attach, attention_names, detach, load_checkpoint
from shuffle_attention.errors import InputError

EXACT = 1e-12  # relative, of the outputs of float64


def attentions(model: nn.Module) -> list[ShuffleAttention]:
    return [module for module in model.modules() if isinstance(module, ShuffleAttention)]


def trained(model: nn.Module) -> nn.Module:
    """The network with attention that attends."""
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
    """What attaching could leave behind in modules."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_load_state_dict_pre_hooks")
    return [(name, type(m), *(len(getattr(m, h)) for h in hooks), set(vars(m))) for name, m in model.named_modules()]


@pytest.mark.parametrize("name", NETWORKS)
class TestEachFamily:
    def test_preserved_it_computes_what_it_computed_and_unpreserved_it_does_not(self, name):
        model, other = network(name), network(name)
        with torch.no_grad():
            expected = output(model)
            report = attach(model, groups="auto")
            assert difference(output(model), expected) < EXACT
            attach(other, groups="auto", preserve=False)
            assert difference(output(other), expected) > 1e-2
        assert len(report.layers) == len(attentions(model)) > 0
        assert report.parameters == sum(p.numel() for m in attentions(model) for p in m.parameters())
        # The report names every module that was put in, as the state dict does.
        assert {f"{row.place}.attention" for row in report.layers} == {
            name for name, module in model.named_modules() if isinstance(module, ShuffleAttention)
        }

    def test_it_is_preserved_in_training_mode_and_learns(self, name):
        model, plain = network(name).train(), network(name).train()
        for module in (*model.modules(), *plain.modules()):
            if isinstance(module, nn.Dropout) or type(module).__name__ in ("StochasticDepth", "DropPath"):
                module.eval()
        attach(model, groups="auto")
        y, expected = output(model), output(plain)
        assert difference(y, expected) < EXACT
        y.square().sum().backward()
        for module in attentions(model):
            for gate in (module.cbias, module.sbias, module.cweight, module.sweight):
                assert gate.grad is not None
                assert gate.grad.isfinite().all()
                assert gate.grad.abs().max() > 0

    def test_its_weights_go_out_and_in_and_those_from_before_load(self, name, tmp_path):
        model, plain, other = network(name), network(name), network(name)
        names = set(model.state_dict())
        attach(model, groups="auto")
        trained(model)
        assert names < set(model.state_dict())
        assert {key.split(".attention.")[-1] for key in set(model.state_dict()) - names} <= {
            *("cweight", "cbias", "sweight", "sbias", "gn.weight", "gn.bias", "start_scale", "unshuffled")
        }
        attach(other, groups="auto")
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            assert torch.equal(output(other), output(model))
            for before in ("state dict", "checkpoint"):
                trained(model)
                if before == "checkpoint":
                    torch.save(plain.state_dict(), tmp_path / "plain.pth")
                    load_checkpoint(model, tmp_path / "plain.pth")
                else:
                    model.load_state_dict(plain.state_dict())
                assert difference(output(model), output(plain)) < EXACT

    def test_detached_it_is_what_it_was(self, name):
        model = network(name)
        state, traces = state_of(model), traces_of(model)
        attach(model, groups="auto")
        trained(model)
        detach(model)
        assert alike(model.state_dict(), state)
        assert traces_of(model) == traces

    def test_compiled_whole_and_copied_it_computes_the_same(self, name):
        model = network(name)
        attach(model, groups="auto")
        trained(model)
        duplicate = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with torch.no_grad():
            expected = output(model)
            assert difference(output(compiled), expected) < EXACT
            assert torch.equal(output(duplicate), expected)
        for module in attentions(duplicate):  # its own, and not those of the original
            nn.init.zeros_(module.cbias)
        with torch.no_grad():
            assert difference(output(duplicate), expected) > 1e-4
            assert torch.equal(output(model), expected)
        detach(duplicate)
        assert attentions(model)
        assert not attentions(duplicate)
        torch.compiler.reset()


@pytest.mark.parametrize("attention", attention_names())
@pytest.mark.parametrize("where", ["residual", "stage", "last"])
def test_every_layer_of_the_family_starts_as_the_identity(attention, where):
    model = network("plain")
    state = state_of(model)
    with torch.no_grad():
        expected = output(model)
        attach(model, attention, where=where, **{"groups": "auto"} if attention in ("shuffle", "sge") else {})
        assert difference(output(model), expected) < EXACT
    if attention != "none":
        model.train()
        output(model).square().sum().backward()
        grads = [p.grad for n, p in model.named_parameters() if ".attention." in n]
        assert any(grad is not None and grad.abs().max() > 0 for grad in grads)
        model.eval()
    model.load_state_dict(state)
    with torch.no_grad():
        assert difference(output(model), expected) < EXACT
    detach(model)
    assert list(model.state_dict()) == list(state)


def test_in_single_precision_the_difference_is_one_of_rounding():
    model = network("timm-resnext").float()
    with torch.no_grad():
        expected = output(model, photographs().float())
        attach(model, groups="auto")
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
        report = attach(model, where=where, groups="auto")
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


def test_the_report_says_where_what_and_how():
    text = str(attach(Plain(), groups=2))
    assert text.splitlines()[0].split() == "place module channels groups parameters function preserved".split()
    assert "norm2  BatchNorm2d        16       2          24  folded into conv2 and norm2" in text
    assert "conv4  Conv2d             16       2          24  folded into conv4" in text
    assert text.splitlines()[-1] == "shuffle: 2 layers, 48 parameters"


def test_what_cannot_be_permuted_goes_without_its_shuffle():
    """After a convolution in groups the scale is folded alone; after an activation nothing is."""
    model = network("plain")
    with torch.no_grad():
        expected = output(model)
        (norm,) = attach(model, where="norm3", groups=4).layers
        assert norm.preserved == "folded into norm3, without shuffle"
        assert difference(output(model), expected) < EXACT
    assert not model.norm3.attention.shuffle
    activation = network("torchvision-mobilenet_v3")
    assert "identity start, without shuffle, output times 1.368" in str(
        attach(activation, where="features.0.2", groups="auto")
    )


class SharedParameters(nn.Module):
    """One convolution before two norms, as weight tying has it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        u = self.first(x)
        return self.norm2(self.second(self.norm1(u))) + u


def test_parameters_that_are_used_twice_are_not_permuted():
    model = SharedParameters().double().eval()
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    expected = model(x)
    report = attach(model, where="norm*", groups=2)
    assert {row.preserved for row in report.layers} == {
        "folded into norm1, without shuffle",
        "folded into norm2, without shuffle",
    }
    assert difference(model(x), expected) < EXACT


class TwoResults(nn.Module):
    """A network whose second result is what its convolution gives."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return self.norm(y), y


def test_results_of_the_network_are_preserved_wherever_they_are_taken():
    model, x = TwoResults().double().eval(), photographs(16)
    with torch.no_grad():
        expected = model(x)
        assert attach(model, where="norm", groups=2).layers[0].preserved == "folded into norm, without shuffle"
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


def test_what_a_module_does_with_its_output_before_it_gives_it_is_preserved():
    block = LooksAtItsOutput()
    model, x = nn.Sequential(block).double().eval(), photographs(16)
    with torch.no_grad():
        y, score = model(x), block.score
        attach(model, where="0", groups=2)
        assert difference(model(x), y) < EXACT
        assert difference(block.score, score) < EXACT


def test_attached_in_turn_they_come_out_in_turn():
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


def test_detached_after_training_it_computes_what_it_did_with_attention_at_its_start():
    model = network("torchvision-resnet")
    attach(model, groups="auto")
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if ".attention." not in parameter_name:
                parameter.mul_(1.01)
        expected = output(model)
        detach(model)
        assert difference(output(model), expected) < EXACT


def test_weights_that_leave_it_out_do_not_move_it():
    """A head alone, loaded without strictness, is no plain network."""
    model = network("torchvision-resnet")
    attach(model, groups="auto")
    trained(model)
    state = state_of(model)
    model.load_state_dict({key: value for key, value in state.items() if key.startswith("fc.")}, strict=False)
    assert alike(model.state_dict(), state)


def test_weights_of_a_head_beside_what_was_folded_do_not_move_it():
    model = network("plain")
    attach(model, where="residual", groups=2)
    trained(model)
    state = state_of(model)
    head = {key: value for key, value in state.items() if key.startswith("head.")}
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


def test_plain_weights_load_where_the_modules_around_attention_have_none():
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))), photographs(16).float()
    state, expected = state_of(model), model(x)
    attach(model, where="1.?", groups=2)
    trained(model)
    model.load_state_dict(state)
    assert difference(model(x), expected) < 1e-6


@pytest.mark.parametrize("checkpoint", [False, True])
def test_plain_weights_load_under_each_name_of_a_module(checkpoint, tmp_path):
    model, x = TwoNames().double().eval(), photographs(16)
    state = state_of(model)
    torch.save(state, tmp_path / "plain.pth")
    with torch.no_grad():
        expected = model(x)
        attach(model, where="norm", groups=2)
        trained(model)
        if checkpoint:
            load_checkpoint(model, tmp_path / "plain.pth")
        else:
            model.load_state_dict(state)
        assert difference(model(x), expected) < EXACT
    detach(model)
    assert alike(model.state_dict(), state)


def test_a_checkpoint_that_does_not_fit_leaves_what_is_restored_alone(tmp_path):
    model = network("plain")
    state = state_of(model)
    attach(model, groups=2)
    torch.save({key: value + 1 for key, value in state.items() if key != "head.weight"}, tmp_path / "plain.pth")
    with pytest.raises(InputError, match="missing: head.weight"):
        load_checkpoint(model, tmp_path / "plain.pth")
    detach(model)
    assert alike(model.state_dict(), state)


def test_a_part_of_a_network_loads_plain_weights_too():
    model, plain = network("torchvision-resnet"), network("torchvision-resnet")
    attach(model, groups="auto")
    model.layer1.load_state_dict(plain.layer1.state_dict())
    with torch.no_grad():
        assert difference(output(model), output(plain)) < EXACT


@pytest.mark.parametrize(("name", "where"), [("plain", "norm3"), ("torchvision-resnet", "stage")])
def test_weights_that_mean_something_else_do_not_load(name, where):
    """Preserved without their shuffle, into layers that shuffle, and the other way round."""
    preserved, published = network(name), network(name)
    attach(preserved, where=where, groups=2)
    attach(published, where=where, groups=2, preserve=False)
    for one, other in ((preserved, published), (published, preserved)):
        with pytest.raises(RuntimeError, match="attention.unshuffled"):
            one.load_state_dict(other.state_dict())


def test_without_preserve_plain_weights_lack_what_they_lack():
    model, plain = network("plain"), network("plain")
    attach(model, groups=2, preserve=False)
    with pytest.raises(RuntimeError, match="norm2.attention.cweight"):
        model.load_state_dict(plain.state_dict())


def test_types_and_layouts_follow_the_network():
    model = network("torchvision-resnet").to(torch.bfloat16)
    attach(model, groups="auto", where="stage")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.bfloat16, torch.int64}  # those of norms, which count batches
    model = model.float().to(memory_format=torch.channels_last)
    y = model(photographs().float().contiguous(memory_format=torch.channels_last))
    assert y.dtype == torch.float32
    assert all(not module.training for module in attentions(model))
    model.train()
    assert all(module.training for module in attentions(model))


def _synchronised(model: nn.Module) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _replaced(model: nn.Module) -> None:
    model.layer1[0].bn2 = nn.Identity()


@pytest.mark.parametrize("replace", [_synchronised, _replaced])
def test_a_network_that_lost_its_attention_stops_instead_of_computing_something_else(replace):
    model = network("torchvision-resnet")
    attach(model, groups="auto")
    replace(model)
    with pytest.raises(InputError, match="attention at .*bn2 of _NarrowBlock is lost.*Convert or fuse norms first"):
        output(model)


def test_converted_first_it_is_attached_as_ever():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(network("torchvision-resnet"))
    with torch.no_grad():
        expected = output(model)
        report = attach(model, groups="auto")
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
    attach(model, where="stage", groups="auto")
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
    attach(model, groups="auto")
    attach(model, groups="auto")


def compiled(model: nn.Module) -> None:
    attach(torch.compile(model, backend="eager"))


def compiled_in_part(model: nn.Module) -> None:
    model.layer1 = torch.compile(model.layer1, backend="eager")
    attach(model, groups="auto")


def made_for_inference() -> nn.Module:
    with torch.inference_mode():
        return Plain()


def kept_for_backward() -> nn.Module:
    model = nn.Sequential(LooksAtItsOutput())
    model(photographs(16).float())
    return model


RESNET: Callable[[], nn.Module] = lambda: network("torchvision-resnet")  # noqa: E731
ERRORS = {
    "unknown attention": (RESNET, lambda m: attach(m, "shufle"), "did you mean shuffle"),
    "unknown option": (RESNET, lambda m: attach(m, "se", group=8), "'se' has no option group"),
    "matches nothing": (RESNET, lambda m: attach(m, where="layer*.bn4"), "matches no module.*names like 'layer4'"),
    "like a preset": (RESNET, lambda m: attach(m, where="stages"), "'stage' \\(after.*names like 'stage'"),
    "not a where": (RESNET, lambda m: attach(m, where=3), "a glob or a predicate"),
    "a class": (RESNET, lambda m: attach(m, where=nn.BatchNorm2d), "a predicate.*where=lambda name, module: isinst"),
    "a module": (RESNET, lambda m: attach(m, where=m.layer1), "a glob or a predicate"),
    "made for inference": (made_for_inference, lambda m: attach(m, groups=2), "made under torch.inference_mode"),
    "cannot be copied": (kept_for_backward, lambda m: attach(m, where="0"), "cannot be copied.*under torch.no_grad"),
    "compiled in part": (RESNET, compiled_in_part, "layer1 is compiled already"),
    "shared module": (RESNET, lambda m: attach(m, where="*.relu"), "layer1.0.relu is called 2 times"),
    "no map": (RESNET, lambda m: attach(m, where="fc"), r"fc gives \(1, 5\), which is no map"),
    "groups": (RESNET, lambda m: attach(m), "groups=64.*32.*groups='auto' chooses"),
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
        lambda m: attach(m, where="*.block.5", groups="auto"),
        "channels in the last dimension",
    ),
    "children of its own": (
        lambda: nn.Sequential(IteratesChildren(), nn.ReLU()),
        lambda m: attach(m, where="0", groups=2),
        "attention cannot be attached at 0: .* The network is as it was",
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
    assert attach(model, where="1", groups=2).layers[0].preserved == "folded into Conv1d 0 and BatchNorm1d 1"


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
