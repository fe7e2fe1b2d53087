"""SA-ResNets, registered with timm: importing this module makes ``timm.create_model("sa_resnet50")`` work.

The models are timm's ResNet with blocks that end in shuffle attention, and accept what timm's ResNet accepts
(``num_classes``, ``in_chans``, ``features_only``, ``drop_path_rate``, gradient checkpointing, saving to the Hugging
Face Hub and so on). State-dict keys are those of the published model.

Sources: Zhang & Yang, SA-Net, arXiv:2102.00240, section 4; He et al., ResNet, arXiv:1512.03385.
"""

import functools
import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import (
    DefaultCfg,
    PretrainedCfg,
    ResNet,
    build_model_with_cfg,
    create_model,
    get_arch_pretrained_cfgs,
    get_pretrained_cfg,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._registry import _model_has_pretrained
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ..attach.weights import fit_attention
from ..attention import create_attention, gate_names, largest_groups
from ..checkpoints import CheckpointError, find_state_dict, read_checkpoint, renamed, require_finite
from ..errors import InputError, listed
from .branch import Memory, run_branch, set_memory
from .fused_block import block_end

__all__ = ["SABasicBlock", "SABottleneck", "SAResNet", "small_input_stem"]

logger = logging.getLogger(__name__)
DEFAULT_CFG = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "conv1",
    "classifier": "fc",
}
# Number of blocks of each stage, by depth: He et al., table 1. The first two have basic blocks, the others bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class _SABlock(nn.Module):
    """Adds attention to a block of timm.

    Args:
        inplanes: Number of input channels.
        planes: Number of channels, before the block's expansion.
        *args: Further arguments of timm's block.
        groups: Groups of the attention; a narrow stage has as many as fit.
        attention_options: Further options of the attention.
        device: Device of the parameters.
        dtype: Type of the parameters.
        **kwargs: Further arguments of timm's block.
    """

    expansion: int
    aa: nn.Module
    downsample: nn.Module | None
    drop_path: nn.Module | None
    memory: Memory = "keep"

    def __init__(
        self,
        inplanes: int,
        planes: int,
        *args,
        groups: int = 64,
        attention_options: Mapping[str, Any] | None = None,
        device=None,
        dtype=None,
        **kwargs,
    ):
        super().__init__(inplanes, planes, *args, device=device, dtype=dtype, **kwargs)
        channels = planes * self.expansion
        options = {"groups": largest_groups(channels, groups), **(attention_options or {})}
        self.sa = create_attention("shuffle", channels, device=device, dtype=dtype, **options)

    def _run(self, x: Tensor, branch: Sequence[nn.Module], norm: nn.Module, act: nn.Module) -> Tensor:
        u = run_branch(x, branch, self.memory)
        shortcut = x if self.downsample is None else run_branch(x, (self.downsample,), self.memory)
        return block_end(u, shortcut, norm, self.sa, act, self.drop_path, conv=branch[-1], memory=self.memory)


class SABasicBlock(_SABlock, BasicBlock):
    """timm's basic block with shuffle attention before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1, self.bn1, self.drop_block, self.act1, self.aa, self.conv2
        return self._run(x, branch, self.bn2, self.act2)


class SABottleneck(_SABlock, Bottleneck):
    """timm's bottleneck with shuffle attention before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv1, self.bn1, self.act1, self.conv2, self.bn2, self.drop_block, self.act2, self.aa, self.conv3
        return self._run(x, branch, self.bn3, self.act3)


class _AfterStem:
    """A ResNet whose stem has run: its modules return what they are given."""

    def __init__(self, model: ResNet):
        self._model = model
        self.conv1 = self.bn1 = self.act1 = self.maxpool = lambda x: x

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class SAResNet(ResNet):
    """timm's ResNet, which also tells optimisers to leave the gates out of weight decay.

    Args:
        *args: Arguments of timm's ResNet.
        small_stem: Whether it has the stem for images of at most 64 pixels (:func:`small_input_stem`).
        **kwargs: Further arguments of timm's ResNet.
    """

    memory: Memory = "keep"

    def __init__(self, *args: Any, small_stem: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if small_stem:
            small_input_stem(self)

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super().forward_features(x)
        x = run_branch(x, (self.conv1, self.bn1, self.act1, self.maxpool), self.memory)
        return ResNet.forward_features(cast(Any, _AfterStem(self)), x)

    def no_weight_decay(self) -> set[str]:
        return gate_names(self)


def small_input_stem(model: nn.Module) -> None:
    """Give a timm or torchvision ResNet the stem for images of at most 64 pixels, in place.

    A 3x3 convolution of stride 1 replaces the 7x7 one of stride 2 and the max pooling goes, as in the models that
    He et al. (arXiv:1512.03385, section 4.2) train on CIFAR-10. Call it before training or loading weights: the new
    convolution is initialised at random.

    Raises:
        InputError: If the model has no ``conv1`` and ``maxpool`` of that kind.
    """
    conv = getattr(model, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(model, "maxpool", None), nn.MaxPool2d):
        raise InputError(
            f"a small-input stem replaces a convolution 'conv1' and a max pooling 'maxpool'; "
            f"{type(model).__name__} does not have both"
        )
    weight = conv.weight
    model.conv1 = nn.Conv2d(
        conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device=weight.device, dtype=weight.dtype
    )
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


def build_resnet(
    model: type[ResNet], name: str, depth: int, pretrained: bool, blocks: tuple[Any, Any], **kwargs: Any
) -> Any:
    """Build a registered ResNet.

    The last norm of every branch starts at 1, as published; ``zero_init_last=True`` starts it at 0, as timm does.

    Pretrained weights are those of timm's plain ResNet of this depth, by timm's tags, unless ``pretrained_cfg`` or
    ``pretrained_cfg_overlay`` name others. To weights of a plain model, attention is added that starts as the identity.

    Args:
        model: Class of the model.
        name: Name under which it is registered.
        depth: A key of ``STAGES``.
        pretrained: Whether to load weights.
        blocks: Basic block and bottleneck.
        **kwargs: Further arguments of the model, and those of timm's ``build_model_with_cfg``.

    Raises:
        CheckpointError: If the weights cannot be read, or do not fit.
        InputError: If they cannot be fetched.
    """
    overlay = dict(kwargs.pop("pretrained_cfg_overlay", None) or {})
    if pretrained:
        cfg = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
        if cfg.source not in ("hf-hub", "local-dir") and (cfg.state_dict or cfg.file):
            overlay |= _given_weights(cfg, depth, kwargs)
        elif not cfg.has_weights and not kwargs.get("pretrained_cfg"):
            kwargs["pretrained_cfg"] = plain_cfgs(depth).tags[1]
    try:
        built: Any = build_model_with_cfg(
            model,
            name,
            pretrained,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=_fitted,
            block=blocks[depth >= 50],
            layers=STAGES[depth],
            **{"zero_init_last": False, **kwargs},
        )
    except OSError as error:  # of the download
        raise InputError(
            f"the weights of {name} could not be fetched ({type(error).__name__}: {str(error)[:200]}); with a file of "
            f"your own: pretrained_cfg_overlay={{'file': 'resnet{depth}.pth'}}"
        ) from error
    built.pretrained_cfg.pop("state_dict", None)
    return built


def _given_weights(cfg: PretrainedCfg, depth: int, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of timm's cfg for weights from a file or a state dict, with their classes and channels."""
    weights, source = cfg.state_dict, "the state dict"
    if not weights:
        source = str(cfg.file)
        weights, _ = find_state_dict(read_checkpoint(source), path=source)
    plain = create_model(f"resnet{depth}", device=torch.device("meta"))
    weights, *_ = renamed(weights, plain.state_dict())
    require_finite(nn.Module(), weights, source)
    head, stem = weights.get("fc.weight"), weights.get("conv1.weight")
    num_classes = 0 if head is None else len(head)
    wanted = 0 if kwargs.get("features_only") else kwargs.get("num_classes", num_classes)
    if wanted not in (0, num_classes):
        logger.warning(
            "%s has a classifier of %d classes; that of %d is new and untrained", source, num_classes, wanted
        )
    channels = cfg.input_size[0] if stem is None or stem.dim() != 4 else stem.shape[1]
    size = {"num_classes": num_classes, "input_size": (channels, *cfg.input_size[1:])}
    return {"state_dict": weights, "file": None, **size}


def _fitted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return weights with all entries of a model but those of its classifier, and give its attention their start.

    Raises:
        CheckpointError: If entries are missing or unexpected, which timm ignores if it creates a new classifier.
    """
    fit, own = fit_attention(model, weights), model.state_dict()
    if fit.started:
        logger.info("plain weights: %d attention layers are added and start as the identity", len(fit.started))
    missing = [key for key in own if key not in fit.weights and not key.endswith("num_batches_tracked")]
    faults = {"missing": missing, "unexpected": [key for key in fit.weights if key not in own]}
    faults = {kind: [key for key in keys if not key.startswith("fc.")] for kind, keys in faults.items()}
    if any(faults.values()):
        told = [f"{len(keys)} {kind}: {listed(keys, 4)}" for kind, keys in faults.items() if keys]
        raise CheckpointError(f"the weights do not fit {type(model).__name__}: {'; '.join(told)}")
    return fit.weights


@functools.cache
def plain_cfgs(depth: int) -> DefaultCfg:
    """Return timm's cfgs of the weights of its plain ResNet, by tag, after the cfg of the published SA-ResNets.

    The default has no tag and no weights: it tells how images are prepared for a model that is trained from scratch.
    """
    default = get_pretrained_cfg(f"resnet{depth}")
    assert default is not None
    cfgs = {str(cfg.tag): cfg for cfg in get_arch_pretrained_cfgs(f"resnet{depth}").values()}
    tags = ["", *sorted(cfgs, key=lambda tag: tag != default.tag)]
    return DefaultCfg(deque(tags), {"": PretrainedCfg(**DEFAULT_CFG), **cfgs}, is_pretrained=True)


def register(
    name: str, create: Callable[..., nn.Module], doc: str, cfg: Mapping[str, Any] | DefaultCfg = DEFAULT_CFG
) -> None:
    """Register ``create(pretrained, **kwargs)`` with timm, and as a function of the module that defines it."""

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create(pretrained, **kwargs)

    entrypoint.__name__ = entrypoint.__qualname__ = name
    entrypoint.__module__ = getattr(create, "func", create).__module__
    entrypoint.__doc__ = doc
    module: Any = sys.modules[entrypoint.__module__]
    vars(module).setdefault("default_cfgs", {})[name] = cfg  # where timm looks for it
    setattr(module, name, register_model(entrypoint))
    if isinstance(cfg, DefaultCfg) and cfg.is_pretrained:
        _model_has_pretrained.add(name)  # timm looks at the first cfg only, which is that of an untrained model


def _create(
    depth: int,
    pretrained: bool,
    *,
    groups: int = 64,
    attention_options: Mapping[str, Any] | None = None,
    block_args: Mapping[str, Any] | None = None,
    memory: Memory = "keep",
    **kwargs: Any,
) -> SAResNet:
    block_args = {"groups": groups, "attention_options": attention_options, **(block_args or {})}
    blocks = SABasicBlock, SABottleneck
    model = build_resnet(SAResNet, f"sa_resnet{depth}", depth, pretrained, blocks, block_args=block_args, **kwargs)
    set_memory(model, memory)
    return model


for _depth in STAGES:
    _make = functools.partial(_create, _depth)
    register(f"sa_resnet{_depth}", _make, f"SA-ResNet-{_depth}.", plain_cfgs(_depth))
