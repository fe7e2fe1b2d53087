"""Validation images that are drawn from data without a split."""

from collections import Counter

import pytest

from shuffle_attention.sanet.data.split import held_out


def test_each_class_gives_its_share_and_keeps_one_to_train_on():
    groups = ["many"] * 100 + ["few"] * 3 + ["pair"] * 2 + ["one"]
    held = held_out(groups, 0.2)
    assert Counter(group for group, out in zip(groups, held, strict=True) if out) == {"many": 20, "few": 1, "pair": 1}
    assert held == held_out(groups, 0.2)
    assert held != held_out(groups, 0.2, seed=1)


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_neither_part_is_empty(fraction):
    assert 0 < sum(held_out([0] * 7, fraction)) < 7
    assert held_out([], fraction) == []
