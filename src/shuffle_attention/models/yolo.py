"""Shuffle attention in ultralytics' models, as rows of a model file and attached; needs the extra ``yolo``.

Importing this module registers both with ultralytics. Pickled models name it, so a process that loads one registers
them too.
"""

import functools
from copy import deepcopy
from typing import Any

from torch import nn
from ultralytics.engine.model import Model
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn import tasks
from ultralytics.utils.callbacks.base import default_callbacks
from ultralytics.utils.torch_utils import unwrap_model

from ..attach.insert import Attached, Insertion, attached, insert
from ..attention import Blend, ShuffleAttention, gate_names
from ..attention.spec import largest_groups
from ..errors import InputError, listed

ROW = "ShuffleAttention"


def register() -> None:
    """Let ultralytics' model files name ``ShuffleAttention``, and its trainers keep attached attention.

    The argument of a row is the number of groups. Without it, the row has the largest number up to 64 that fits::

        - [-1, 1, ShuffleAttention, []]
        - [-1, 1, ShuffleAttention, [16]]

    The channels are those of the input row after width scaling. They are read while ultralytics parses the file: it
    resolves a string among a row's arguments to its local variable of that name, and ``ch`` is its list of the
    channels of all rows so far.

    Ultralytics builds its model a second time before it trains, and then copies the weights that fit. Attached layers
    are copied with them. Its optimisers treat gates like norms, without weight decay and without Muon.

    Importing this module has the same effect, and a second call changes nothing.
    """
    if vars(tasks).get(ROW) is ShuffleAttentionRow:
        return
    setattr(tasks, ROW, ShuffleAttentionRow)
    tasks.parse_model = _parsing_rows(tasks.parse_model)
    tasks.BaseModel.load = _loading_attention(tasks.BaseModel.load)
    Model.train = _training_attention(Model.train)
    BaseTrainer.build_optimizer = _sparing_gates(BaseTrainer.build_optimizer)
    default_callbacks["on_pretrain_routine_start"].append(import_in_workers)


class ShuffleAttentionRow(ShuffleAttention):
    """The layer of a row of a model file.

    Args:
        channels: Channels of all rows so far.
        source: The row whose map it takes.
        groups: Number of groups; ``"auto"`` for the largest number up to 64 that fits.
    """

    def __init__(self, channels: list[int], source: int, groups: int | str = "auto"):
        if not isinstance(channels, list):
            raise InputError(
                f"a row {ROW} needs an ultralytics whose parse_model has the channels of all rows in a list 'ch', as "
                f"8.4 has; got {channels!r}"
            )
        own = channels[source]
        super().__init__(own, largest_groups(own) if groups == "auto" else groups)  # type: ignore[arg-type]


def import_in_workers(trainer: Any) -> None:
    """Do nothing: ultralytics' worker processes unpickle the callbacks, and import this module to do so."""


def _parsing_rows(parse: Any) -> Any:
    @functools.wraps(parse)
    def parse_model(d: dict[str, Any], ch: int, verbose: bool = True) -> Any:
        rows = {part: [_with_channels(row) for row in d[part]] for part in ("backbone", "head")}
        return parse({**d, **rows}, ch, verbose)

    return parse_model


def _with_channels(row: list[Any]) -> list[Any]:
    """Return the row with the names of ultralytics' variables before its arguments."""
    source, repeats, module, arguments = row
    if module != ROW:
        return row
    if not isinstance(source, int):
        raise InputError(f"a row {ROW} takes one row that it comes from, got from={source!r}")
    return [source, repeats, module, ["ch", source, *arguments]]


def _loading_attention(load: Any) -> Any:
    @functools.wraps(load)
    def load_with_attention(self: nn.Module, weights: Any, *args: Any, **options: Any) -> None:
        load(self, weights, *args, **options)
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        for layer in list(attached(source)):
            _copy(layer, self)

    return load_with_attention


def _copy(layer: Attached, model: nn.Module) -> None:
    """Attach a copy of an attached layer to the module of the same name in another model.

    Raises:
        InputError: If that model has no such module, or one of another shape.
    """
    old = {name: value.shape for name, value in layer.owner.state_dict().items()}
    owner = dict(model.named_modules()).get(layer.owner_name)
    if owner is None or any(old.get(name) != value.shape for name, value in owner.state_dict().items()):
        raise InputError(
            f"the weights have attention attached to {layer.owner_name}, which is not the same in this model; "
            f"shuffle_attention.detach removes it from the weights"
        )
    like = next(model.parameters())
    twin = deepcopy(layer.layer).to(like.device, like.dtype).train(owner.training)
    if type(getattr(owner, layer.child, None)) is type(twin):  # attached before
        setattr(owner, layer.child, twin)
    elif not hasattr(owner, layer.child):
        insert(
            Attached(owner, layer.owner_name, layer.child, Insertion(layer.insertion.how, layer.insertion.start)), twin
        )


def _training_attention(train: Any) -> Any:
    @functools.wraps(train)
    def train_with_attention(self: Any, *args: Any, **options: Any) -> Any:
        layers = [layer.name for layer in attached(self.model)] if isinstance(self.model, nn.Module) else []
        if layers and not options.get("resume"):
            pretrained = options.get("pretrained", self.overrides.get("pretrained", True))
            if pretrained not in (True, None):
                raise InputError(
                    f"pretrained={pretrained} would train without the attention attached at {listed(layers, 3)}; "
                    f"load the weights first, then attach"
                )
            self.ckpt = self.ckpt or {"model": self.model}  # train this model, and not another from its file
        return train(self, *args, **options)

    return train_with_attention


def _sparing_gates(build: Any) -> Any:
    @functools.wraps(build)
    def build_optimizer(self: Any, model: nn.Module, *args: Any, **options: Any) -> Any:
        optimizer = build(self, model, *args, **options)
        plain = unwrap_model(model)
        alphas = {f"{name}.alpha" for name, module in plain.named_modules() if isinstance(module, Blend)}
        names = gate_names(plain) | alphas
        gates = {id(parameter): parameter for name, parameter in plain.named_parameters() if name in names}
        norms = [group for group in optimizer.param_groups if group.get("param_group") == "bn"]
        if gates and norms:
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gates]
            norms[-1]["params"] += gates.values()  # with MuSGD the first has the rate of the head
        return optimizer

    return build_optimizer


register()
