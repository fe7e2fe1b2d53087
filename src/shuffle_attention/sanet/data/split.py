"""Draw validation images from data that have no split."""

import hashlib
from collections.abc import Hashable, Sequence

__all__ = ["held_out"]


def held_out(
    groups: Sequence[Hashable], fraction: float, seed: int = 0, names: Sequence[str] | None = None
) -> list[bool]:
    """Return whether each image is held out for validation.

    The share is drawn at random from each group, at least one image and not all; the only image of a group is for
    training. The same groups, names, fraction and seed give the same images, whatever their order.

    Args:
        groups: Class of each image.
        fraction: Share to hold out, between 0 and 1; 0 holds out none.
        seed: Seed of the draw. Runs that differ in their own seeds are evaluated on the same images.
        names: Name of each image, on whose hash its draw depends; by default its index.
    """
    members: dict[Hashable, list[tuple[bytes, int]]] = {}
    for index, group in enumerate(groups):
        name = f"{seed} {index if names is None else names[index]}".encode(errors="surrogateescape")
        members.setdefault(group, []).append((hashlib.sha256(name).digest(), index))
    held = [False] * len(groups)
    for hashes in members.values():
        count = min(max(round(fraction * len(hashes)), 1), len(hashes) - 1) if fraction else 0
        for _, index in sorted(hashes)[:count]:
            held[index] = True
    return held
