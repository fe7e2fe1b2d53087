"""Class activation maps: where in an image the evidence for a class is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError, require_extra, unknown
from .gates import attention_layers, group_means
from .stages import as_map, eval_mode, find_layer, stages

# Names for people.
TITLES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "layercam": "LayerCAM",
    "scorecam": "Score-CAM",
    "group": "groups of shuffle attention",
}
METHODS = tuple(TITLES)


@dataclass(frozen=True)
class Explanation:
    """The evidence for one class of each image, as a map.

    Attributes:
        maps: The maps resized to the images, (B, height, width), float32, at least 0. Their scale depends on the
            method; :meth:`shares` scales them to [0, 1].
        raw: The maps in the resolution of the layer, (B, rows, columns).
        classes: The classes explained, (B,).
        probabilities: Their probabilities, (B,).
        predicted: The most probable classes, (B,).
        layer: Name of the module explained.
        method: One of ``METHODS``.
    """

    maps: Tensor
    raw: Tensor
    classes: Tensor
    probabilities: Tensor
    predicted: Tensor
    layer: str
    method: str

    def shares(self) -> Tensor:
        """Return each map scaled from its lowest and highest value to [0, 1]; a flat map becomes 0."""
        low, high = self.maps.amin((1, 2), keepdim=True), self.maps.amax((1, 2), keepdim=True)
        return torch.where(high > low, (self.maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny), 0.0)


def explain(
    model: nn.Module,
    images: Tensor,
    method: str = "gradcam",
    target: int | Sequence[int] | Tensor | None = None,
    layer: str | None = None,
) -> Explanation:
    """Return where in each image the evidence for a class is.

    The model's state is restored whatever happens: modes, parameters, their gradients, buffers, hooks. Two threads must
    not explain one model at the same time.

    Args:
        model: Model that returns logits (B, classes), or an object whose ``logits`` they are.
        images: Preprocessed images (B, channels, height, width) on the model's device.
        method: "gradcam", "gradcam++", "layercam", "scorecam", or "group": Score-CAM with the mean activation of
            each group of a shuffle attention instead of each channel.
        target: Class to explain, one for all images or one per image; by default the predicted ones.
        layer: Name of a module or a stage (``stage1``, ...) of timm's networks; the last stage by default. For "group"
            a shuffle attention, the last one by default.

    Raises:
        InputError: If the method, the class or the layer does not exist, the layer's output is not a map, the class
            score does not depend on it or is not finite, or torchcam is not installed.

    Sources: Selvaraju et al., Grad-CAM, arXiv:1610.02391; Chattopadhay et al., Grad-CAM++, arXiv:1710.11063; Jiang et
    al., LayerCAM, IEEE TIP 2021; Wang et al., Score-CAM, arXiv:1910.01279; Zhang & Yang, SA-Net, arXiv:2102.00240,
    for the groups.

    Example:
        >>> explanation = explain(timm.create_model("sa_resnet18").eval(), torch.randn(2, 3, 64, 64), "layercam")
        >>> explanation.maps.shape
        torch.Size([2, 64, 64])
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor, got {type(images).__name__}")
    if images.dim() != 4 or not len(images) or not images.is_floating_point():
        raise InputError(
            f"images must be floating point of shape (B, channels, height, width) with at least one, got "
            f"{tuple(images.shape)} of {images.dtype}"
        )
    with eval_mode(model):
        images = images.detach().clone()
        name = _group_layer(model, layer) if method == "group" else find_layer(model, layer, images)
        raw, logits, classes = _raw(model, images, method, target, name)
        raw = raw.float()
        maps = functional.interpolate(raw[:, None], images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        # A flat map must stay flat: rounding would otherwise be shown as highest and lowest.
        maps = maps.clamp(raw.amin((1, 2), keepdim=True), raw.amax((1, 2), keepdim=True))
        probabilities = logits.float().softmax(1)
        chosen = probabilities.gather(1, classes[:, None])[:, 0]
        return Explanation(maps, raw, classes, chosen, logits.argmax(1), name, method)


def _raw(
    model: nn.Module, images: Tensor, method: str, target: int | Sequence[int] | Tensor | None, name: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the maps (B, rows, columns), the logits (B, classes) and the classes (B,), computed with torchcam."""
    cams = _torchcam()
    by_score = method in ("scorecam", "group")
    kinds = {"gradcam": cams.GradCAM, "gradcam++": cams.GradCAM, "layercam": cams.LayerCAM}
    laid_out: Callable[[Any], Tensor] = partial(as_map, model=model, layer=name, images=images.shape)
    if method == "group":
        laid_out = partial(group_means, layer=model.get_submodule(name))
    extractor = kinds.get(method, cams.ScoreCAM)(model, name, reshape_transform=laid_out)
    # Later modules may change the layer's output in place, as a block's addition does. They get a copy, so that
    # activations and gradients are those of the layer.
    copies = model.get_submodule(name).register_forward_hook(_copy)
    with copies, extractor, torch.set_grad_enabled(not by_score):
        # Gradients flow from the images, because parameters may be frozen; the copy may be changed in place.
        logits = model(images.requires_grad_(not by_score).clone())
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            received = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(
                f"{type(model).__name__} must return logits (B, classes), alone or as .logits of an object, got "
                f"{received}"
            )
        if not logits.isfinite().all():
            raise InputError(f"the class scores of {type(model).__name__} are not all finite; are its weights?")
        classes = _classes(target, logits)
        if extractor.hook_a[0] is None:
            raise InputError(f"layer {name!r} of {type(model).__name__} is not called when the model runs")
        try:
            raw = extractor(classes.tolist(), logits, normalized=False)[0]
        except RuntimeError as error:
            if "not connected" not in str(error):
                raise
            raise _unread(model, name) from error
        if not by_score and not extractor.hook_g[0].any():
            raise _unread(model, name)
        if method == "gradcam++":
            raw = _gradcam_pp(extractor.hook_a[0], extractor.hook_g[0])
    return raw.detach(), logits.detach(), classes


def _gradcam_pp(activations: Tensor, gradients: Tensor) -> Tensor:
    """Return Grad-CAM++'s maps (B, rows, columns) from activations and gradients (B, channels, rows, columns).

    torchcam 0.5.0 omits the division (the quotient is written to a copy). With g a gradient and S the sum of its
    channel's activations, the weight of a position (equations 10 and 19 of the paper) is
    g^2 / (2 g^2 + S g^3) * relu(g) = relu(g) / (2 + S relu(g)).
    """
    positive = gradients.relu()
    weights = positive / (2 + activations.sum((2, 3), keepdim=True) * positive)
    return (weights.sum((2, 3), keepdim=True) * activations).sum(1).relu()


def _copy(_: nn.Module, __: Any, output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _classes(target: int | Sequence[int] | Tensor | None, logits: Tensor) -> Tensor:
    count = logits.shape[1]
    if target is None:
        return logits.argmax(1)
    try:
        classes = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"target must be a class index or one per image, got {target!r}") from error
    if classes.dim() == 0:
        classes = classes.expand(len(logits))
    if classes.shape != (len(logits),) or classes.is_floating_point() or classes.dtype == torch.bool:
        raise InputError(f"target must be a class index or one per image ({len(logits)}), got {target!r}")
    if int(classes.min()) < 0 or int(classes.max()) >= count:
        raise InputError(f"target must be from 0 to {count - 1}, the {count} classes of the model, got {target!r}")
    return classes.long()


def _group_layer(model: nn.Module, layer: str | None) -> str:
    """Return a shuffle attention by its name, or the last one inside a stage or another module."""
    layers = list(attention_layers(model))
    if not layers:
        raise InputError(
            f"method 'group' shows the groups of shuffle attention, and {type(model).__name__} has none; "
            f"{', '.join(m for m in METHODS if m != 'group')} would do"
        )
    outer = stages(model).get(layer or "", layer)
    inside = [name for name in layers if outer is None or name == outer or name.startswith(f"{outer}.")]
    if not inside:
        raise InputError(
            f"method 'group' needs a layer of shuffle attention, got {layer!r}; there are {', '.join(layers)}"
        )
    return inside[-1]


def _unread(model: nn.Module, name: str) -> InputError:
    ends = stages(model)
    other = find_layer(model, None, torch.empty(0)) if ends else name
    would = f"layer {other!r} would do" if other != name else "the classifier may be untrained, with weights of 0"
    return InputError(
        f"the class scores of {type(model).__name__} do not depend on the output of layer {name!r} by position; {would}"
    )


def _torchcam() -> Any:
    require_extra("torchcam", extra="explain", note=" (Python 3.11 or later)")
    from torchcam import methods

    return methods
