"""Networks with attention that start from weights of plain ResNets, and compute what those compute."""

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from networks import difference
from shuffle_attention import ShuffleAttention, load_checkpoint
from shuffle_attention.attention import Blend
from shuffle_attention.checkpoints import CheckpointError
from shuffle_attention.models.attention_resnet import resnet_with

TINY = {"channels": [16, 16, 32, 32], "stem_type": "deep", "stem_width": 8}
FAMILY = ["shuffle", "se", "cbam", "eca", "sge", "gc"]


def randomised(model: nn.Module) -> nn.Module:
    """Return a model in evaluation mode whose norms are no longer alike."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return model.eval()


def plain(depth: int = 18, **options) -> nn.Module:
    return randomised(timm.create_model(f"resnet{depth}", **{**TINY, **options}))


def with_attention(attention: str, depth: int = 18, **options) -> nn.Module:
    name, own = resnet_with(attention, depth)
    return timm.create_model(name, **own, **{**TINY, **options}).eval()


def images() -> Tensor:
    return torch.linspace(-40, 40, 2 * 3 * 32 * 32).sin().reshape(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("attention", "depth"), [*((name, 18) for name in FAMILY), ("shuffle", 50), ("se", 50), ("gc", 50)]
)
def test_plain_weights_load_with_attention_that_starts_as_the_identity(attention, depth, tmp_path):
    model, other = with_attention(attention, depth), with_attention(attention, depth)
    source = plain(depth).double()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "plain.pth")
    report = load_checkpoint(model.double(), tmp_path / "plain.pth")
    blocks = [m for m in model.modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert len(report.started) == len(blocks)
    assert report.loaded == len(source.state_dict())
    with torch.no_grad():
        expected = source(images().double())
        assert difference(model(images().double()), expected) < 1e-12
    # It learns, its state dict says how it starts, and so another model takes it.
    model.train()(images().double()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".sa." in name or ".se." in name:
                parameter.add_(0.1)
        model.eval()
        trained = model(images().double())
        assert difference(trained, expected) > 1e-4
        torch.save(model.state_dict(), tmp_path / "trained.pth")
        assert not load_checkpoint(other.double(), tmp_path / "trained.pth").started
        assert torch.equal(other(images().double()), trained)
        assert len(load_checkpoint(other, tmp_path / "plain.pth").started) == len(blocks)
        assert difference(other(images().double()), expected) < 1e-12


def test_published_weights_load_after_plain_ones(tmp_path):
    published, model = randomised(with_attention("shuffle")), with_attention("shuffle")
    torch.save(published.state_dict(), tmp_path / "sa.pth")
    torch.save(plain().state_dict(), tmp_path / "plain.pth")
    load_checkpoint(model, tmp_path / "plain.pth")
    assert {m.shuffle for m in model.modules() if isinstance(m, ShuffleAttention)} == {False}
    assert len(load_checkpoint(model, tmp_path / "sa.pth").switched) == 8
    with torch.no_grad():
        assert torch.equal(model(images()), published(images()))


def test_allowing_attention_to_differ_does_not_leave_its_published_start(tmp_path):
    source, model = plain(), with_attention("shuffle")
    torch.save(source.state_dict(), tmp_path / "plain.pth")
    assert len(load_checkpoint(model, tmp_path / "plain.pth", may_differ=["*.sa.*"]).started) == 8
    with torch.no_grad():
        assert difference(model(images()), source(images())) < 1e-6


def test_plain_weights_that_do_not_fit_change_nothing(tmp_path):
    model = with_attention("se")
    torch.save(plain(num_classes=4).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="2 wrongly shaped: fc.weight"):
        load_checkpoint(model, tmp_path / "plain.pth")
    assert not any(isinstance(module, Blend) for module in model.modules())
    torch.save({"fc.weight": model.fc.weight + 1, "fc.bias": model.fc.bias}, tmp_path / "head.pth")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert load_checkpoint(model, tmp_path / "head.pth", may_differ=["*"]).started == ()
    assert {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])} == {"fc.weight"}
