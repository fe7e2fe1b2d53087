"""Find the weights in the content of a checkpoint, and give them the names that a model has."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import brief, counted, listed
from .pickles import StandIn
from .reading import CheckpointError

# Names that people save weights under, the most telling first. Any other name will do if it is the only one.
_NAMES = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "params", "module")
_AVERAGED = re.compile(r"(?i)(^|[._])(ema|swa|averaged?|avg|momentum_encoder)([._]|$)")
# Wrappers that put their name before the names of what they wrap: DataParallel and DDP before all; torch.compile, FSDP
# and activation checkpointing at any depth.
_INNER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
_WRAPPERS = re.compile(rf"^(?:module\.|{_INNER})+|(?<=\.){_INNER}")
_MOST_MODULES, _LONGEST_NAME = 100_000, 1000
# Names in weights of bitsandbytes, GPTQ and AWQ, and PyTorch's own quantisation.
_QUANTISED = re.compile(r"(?:^|\.)(?:absmax|quant_map|quant_state\..*|SCB|qweight|qzeros|_packed_params(?:\..*)?)$")
COUNTER = "num_batches_tracked"  # of BatchNorm; files from before PyTorch 0.4.1 and of other libraries lack it


def find_state_dict(
    content: Mapping[str, Any], *, ema: bool | None = None, path: str | os.PathLike = "checkpoint"
) -> tuple[dict[str, Tensor], str]:
    """Return the weights in the content of a checkpoint, and the name under which they are there.

    Args:
        content: Content of a checkpoint.
        ema: Whether to return averaged weights; None returns them if there are any.
        path: Name of the checkpoint, for messages.

    Raises:
        CheckpointError: If there are none, or no averaged ones where ``ema`` asks for them, or several that no name
            tells apart.
    """
    entries = dict(_candidates(content))
    averaged = {name for name in entries if _AVERAGED.search(name)}
    wanted = bool(ema or (ema is None and averaged))
    of_kind = [name for name in entries if (name in averaged) == wanted]
    ranked = sorted(of_kind, key=lambda name: _NAMES.index(name) if name in _NAMES else len(_NAMES))
    known = [name for name in ranked if name in _NAMES or name in averaged]
    if len(known or ranked) > 1 and (not known or known[0] in averaged):
        raise CheckpointError(
            f"{path} holds weights under several names: {listed(ranked)}. Save those that you want alone: "
            f"torch.save(content[{ranked[0]!r}], 'weights.pth')"
        )
    name = (known or ranked or [""])[0]
    bare = name == "" and not ema
    source = entries[name] if name else content if bare else {}
    weights = {key: value for key, value in source.items() if isinstance(key, str) and isinstance(value, Tensor)}
    others = [f"{brief(key, quoted=False)} ({_words(source[key])})" for key in source if key not in weights]
    if weights and others and (name or len(weights) > len(others)):
        where = f" under {name!r}" if name else ""
        raise CheckpointError(f"{path} holds{where} other things than dense tensors by name: {listed(others, 4)}")
    if not weights or others:
        raise CheckpointError(
            f"{path} holds no {'averaged ' if ema else ''}weights: expected a dict of tensors, or one under "
            f"{' or '.join(map(repr, _NAMES[:3]))}; it has "
            f"{listed([f'{brief(key, quoted=False)} ({_words(content[key])})' for key in content]) or 'an empty dict'}"
        )
    quantised = [key for key in weights if _QUANTISED.search(key)]
    if quantised:
        raise CheckpointError(
            f"{path} holds quantised weights, as bitsandbytes, GPTQ or PyTorch's quantisation write them "
            f"({listed(quantised, 2)}), and only weights before quantisation can be used"
        )
    return weights, name


def _candidates(content: Mapping[str, Any], depth: int = 2) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield each name in the content of a checkpoint with the state dict under it."""
    for name, value in content.items():
        if isinstance(value, StandIn):
            value = module_weights(value) or value.items
        if not isinstance(name, str) or not isinstance(value, Mapping):
            continue
        tensors = [key for key, part in value.items() if isinstance(key, str) and isinstance(part, Tensor)]
        named = name in _NAMES or bool(_AVERAGED.search(name))
        if tensors and (named or (2 * len(tensors) > len(value) and any("." in key for key in tensors))):
            yield name, value
        elif depth > 1:
            yield from ((f"{name}.{inner}", part) for inner, part in _candidates(value, depth - 1))


def module_weights(module: StandIn) -> dict[str, Tensor]:
    """Return the state dict of a whole pickled model, whose class is not needed for it."""
    weights: dict[str, Tensor] = {}
    modules = [("", module)]
    for _ in range(_MOST_MODULES):
        if not modules:
            return weights
        prefix, own = modules.pop()
        if len(prefix) > _LONGEST_NAME:
            break
        hidden = own.attributes.get("_non_persistent_buffers_set") or ()
        parts = [own.attributes.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        parameters, buffers, children = (part if isinstance(part, dict) else {} for part in parts)
        entries = {**parameters, **{name: value for name, value in buffers.items() if name not in hidden}}
        weights |= {f"{prefix}{name}": value for name, value in entries.items() if isinstance(value, Tensor)}
        within = [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, StandIn)]
        modules += within[::-1]
    raise CheckpointError("the modules of the model in the file have no end, as in no model that computes")


def _words(value: Any) -> str:
    """Return the kind of an entry that is not a tensor."""
    if isinstance(value, Mapping) and value:
        return f"dict of {_words(next(iter(value.values()))).removeprefix('dict of ')}"
    if isinstance(value, StandIn):
        if value.name.startswith("numpy."):
            return "NumPy array"
        if value.name.startswith(("torch.distributed.", "torch._utils._rebuild_wrapper")):
            return "distributed tensor; save what get_model_state_dict returns with full_state_dict=True"
        rebuilt = re.fullmatch(r"torch\._utils\._rebuild_(\w+?)_?tensor.*", value.name)
        return {"q": "quantised tensor"}.get(rebuilt[1], f"{rebuilt[1]} tensor") if rebuilt else value.name
    return "None" if value is None else type(value).__name__


def unwrapped(weights: Mapping[str, Tensor], own: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Return weights without the names that DataParallel, DDP, torch.compile and AveragedModel add.

    Args:
        weights: State dict.
        own: Entries of the model; names among them are kept, for models with a part called "module".

    Raises:
        CheckpointError: If two entries then have the same name.
    """
    names = {key: key if own is not None and key in own else _WRAPPERS.sub("", key) for key in weights}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise CheckpointError(f"{fault('names stand for two entries', twice)}: with and without a prefix")
    counter = weights.get("n_averaged")  # of AveragedModel
    if counter is not None and counter.dim() == 0 and any(key.startswith("module.") for key in weights):
        del names["n_averaged"]
    return {name: weights[key] for key, name in names.items()}


def renamed(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], *, ema: bool | None = None
) -> tuple[dict[str, Tensor], tuple[str, ...], tuple[str, ...]]:
    """Return weights with the names that a model has, the prefixes that were removed, and the names of what is left.

    Most of a model's entries must be there under one prefix, such as Lightning's ``model.``. Entries without it are no
    part of the model, unless they alone have an entry's name and shape after another prefix, such as ``head.``.

    Args:
        weights: State dict.
        own: Entries of the model.
        ema: Whether to prefer averaged weights among several prefixes; None prefers them.

    Raises:
        CheckpointError: If two prefixes stand for the same entries.
    """
    weights = unwrapped(weights, own)
    by_prefix: dict[str, dict[str, str]] = {"": {key: key for key in weights if key in own}}
    for key in weights:
        for dot in (match.end() for match in re.finditer(r"\.", key[:1000])):
            if key[dot:] in own:
                by_prefix.setdefault(key[:dot], {})[key[dot:]] = key
    most = max(map(len, by_prefix.values()))
    rivals = [prefix for prefix, names in by_prefix.items() if len(names) > 0.9 * most]
    if 2 * most < len(own) or not own.keys() - weights.keys():
        return weights, (), ()
    if len(rivals) > 1 and "" not in rivals:
        averaged = [prefix for prefix in rivals if _AVERAGED.search(prefix)]
        rivals = [prefix for prefix in rivals if prefix not in averaged] if ema is False else averaged or rivals
    prefix = "" if "" in rivals else rivals[0]
    if len(rivals) > 1 and prefix:
        raise CheckpointError(
            f"the model stands there under several prefixes, {listed(rivals)}. Save those that you want alone: "
            f"torch.save({{key.removeprefix({prefix!r}): value for key, value in weights.items() if "
            f"key.startswith({prefix!r})}}, 'weights.pth')"
        )
    chosen = {key: key.removeprefix(prefix) for key in weights if key.startswith(prefix)}
    prefixes = {prefix} - {""}
    for key in own.keys() - set(chosen.values()):
        places = [(p, names[key]) for p, names in by_prefix.items() if key in names]
        if len(places) == 1 and weights[places[0][1]].shape == own[key].shape:
            prefixes.add(places[0][0])
            chosen[places[0][1]] = key
    left = tuple(key for key in weights if key not in chosen)
    return {new: weights[key] for key, new in chosen.items()}, tuple(sorted(prefixes)), left


def kind_of(tensor: Tensor) -> str:
    """Return what must be equal for one tensor to be copied into another without loss of meaning."""
    numbers = "complex" if tensor.is_complex() else "float" if tensor.is_floating_point() else "integer"
    if tensor.is_quantized or tensor.layout != torch.strided:
        numbers = f"quantised {numbers}" if tensor.is_quantized else f"sparse {numbers}"
    return f"{numbers} without values" if tensor.is_meta else numbers


def not_finite(weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None) -> list[str]:
    """Return the tensors that have NaN or infinity, each with the number of such values.

    Args:
        weights: State dict.
        buffers: Buffers of the model. Where they are infinite themselves, as masks of minus infinity are, so may be
            the weights.
    """
    faults = []
    for key, value in weights.items():
        if not (value.is_floating_point() or value.is_complex()) or value.is_meta:
            continue
        wrong = ~torch.isfinite(value.float() if value.dtype.itemsize == 1 else value)
        own = (buffers or {}).get(key)
        if own is not None and own.shape == value.shape and bool(wrong.any()):
            wrong &= value != own.to(value.device, value.dtype)
        if count := int(wrong.sum()):
            faults.append(f"{key} ({count:,} of {value.numel():,})")
    return faults


def require_finite(model: nn.Module, weights: Mapping[str, Tensor], path: str | os.PathLike) -> None:
    """Raise CheckpointError if weights for a model have NaN or infinity where the model itself has none."""
    if faults := not_finite(weights, dict(model.named_buffers())):
        raise CheckpointError(
            f"{path} has NaN or infinity in {counted(len(faults), 'tensor')}: {listed(faults, 4)}. Nothing was loaded. "
            f"The training that wrote it diverged: go back to an earlier checkpoint, and train on with a lower "
            f"learning rate"
        )


def fault(kind: str, entries: list[str]) -> str:
    """Return the number of entries of a kind with the names of the first, or an empty text if there are none."""
    return f"{len(entries)} {kind}: {listed(entries, 4)}" if entries else ""
