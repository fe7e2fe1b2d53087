"""Whether a map tells the truth about a network: what the class loses without the places that it marks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from .eval_mode import eval_mode

_AT_A_TIME = 64  # steps whose images are made at once


@dataclass(frozen=True)
class Faithfulness:
    """The figures of one image.

    Attributes:
        deletion: Area under the probability of the class while places are taken away, the most important first; lower
            is better (Petsiuk et al., RISE).
        insertion: The same while places are added to a blurred image; higher is better.
        drop: How much of its probability the class loses, in percent, when the image is seen through the map; lower
            is better (Chattopadhay et al., Grad-CAM++).
        increase: 100 where the probability rises instead, else 0; higher is better.
    """

    deletion: float
    insertion: float
    drop: float
    increase: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def faithfulness(
    model: nn.Module, images: Tensor, maps: Tensor, classes: Tensor, *, steps: int = 32, batch_size: int = 64
) -> list[Faithfulness]:
    """Returns the figures of each image.

    Places are pixels of the input, ``1 / steps`` of them at a time. Those taken away become the mean colour, which
    is 0 after normalisation. The image that they are added to is blurred by a Gaussian of 5 / 224 of its side. The
    image seen through the map is the normalised image times the map in [0, 1].

    Args:
        model: Network that gives (B, classes) logits; it is afterwards as it was.
        images: (B, channels, height, width), normalised, on its device.
        maps: What is important, (B, height, width), in [0, 1] (:meth:`.Explanation.shares`).
        classes: The class explained in each, (B,).
        steps: In how many steps all places are taken away or added.
        batch_size: Images at a time.

    Raises:
        InputError: If the shapes do not belong together, a class does not exist, or ``steps`` is none.

    Sources: Petsiuk, Das & Saenko, RISE, arXiv:1806.07421, section 4.2; Chattopadhay et al., Grad-CAM++,
    arXiv:1710.11063, section 4.1.
    """
    if maps.shape != (len(images), *images.shape[2:]) or classes.shape != (len(images),):
        raise InputError(
            f"maps must be (B, height, width) and classes (B,) for images {tuple(images.shape)}, got "
            f"{tuple(maps.shape)} and {tuple(classes.shape)}"
        )
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")

    def probability(seen: Tensor, target: int) -> Tensor:
        logits = torch.cat([model(part).float() for part in seen.split(batch_size)])
        if not 0 <= target < logits.shape[1]:
            raise InputError(f"classes must be from 0 to {logits.shape[1] - 1}, got {target}")
        return logits.softmax(1)[:, target]

    found = []
    with eval_mode(model), torch.no_grad():
        for image, share, target in zip(images, maps, classes.tolist(), strict=True):
            found.append(_of_one(lambda seen, target=target: probability(seen, target), image, share, steps))
    return found


def _of_one(probability: Callable[[Tensor], Tensor], image: Tensor, share: Tensor, steps: int) -> Faithfulness:
    # A second to load, which --help can do without.
    from torchvision.transforms.functional import gaussian_blur

    places = share.numel()
    # Of places alike in importance the upper left goes first, whatever the sort does.
    order = share.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(places, device=order.device)
    steps = min(steps, places)
    counts = torch.linspace(0, places, steps + 1, device=order.device).round()
    height, width = share.shape
    blurred = gaussian_blur(image, [_odd(height), _odd(width)], [5 * height / 224, 5 * width / 224])
    without, within = [], []
    for some in counts.split(_AT_A_TIME):
        taken = (rank < some[:, None]).view(-1, 1, *share.shape)
        without.append(probability(torch.where(taken, torch.zeros_like(image), image)))
        within.append(probability(torch.where(taken, image, blurred)))
    deleted, inserted = torch.cat(without), torch.cat(within)
    before, through = deleted[0].item(), probability((image * share)[None])[0].item()
    return Faithfulness(
        deletion=torch.trapezoid(deleted, counts / places).item(),
        insertion=torch.trapezoid(inserted, counts / places).item(),
        drop=100 * max(0.0, before - through) / before if before > 0 else 0.0,
        increase=100.0 * (through > before),
    )


def _odd(side: int) -> int:
    """Width of the Gaussian's window: three deviations to either side, within what reflection at the edge allows."""
    reach = min(round(3 * 5 * side / 224), side - 1)
    return 2 * max(reach, 0) + 1
