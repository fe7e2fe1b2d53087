"""Draw validation images from data that have no split."""

from collections.abc import Hashable, Sequence

import numpy as np

__all__ = ["held_out"]


def held_out(groups: Sequence[Hashable], fraction: float, seed: int = 0) -> list[bool]:
    """Return whether each image is held out for validation.

    The share is drawn at random from each group, at least one image and not all; the only image of a group is for
    training. The same groups, fraction and seed give the same images.

    Args:
        groups: Class of each image.
        fraction: Share to hold out, between 0 and 1.
        seed: Seed of the draw. Runs that differ in their own seeds are evaluated on the same images.
    """
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    held = [False] * len(groups)
    for indices in members.values():
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        for index in rng.permutation(indices)[:count]:
            held[index] = True
    return held
