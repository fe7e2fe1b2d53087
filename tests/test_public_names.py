"""The names of the package, old ones included, and when they are loaded."""

import importlib
import subprocess
import sys

import pytest

import shuffle_attention

PROGRAM = """
import sys
import shuffle_attention
assert "torch" not in sys.modules
import shuffle_attention.checkpoints  # which loads the folder named like the function
from shuffle_attention import ShuffleAttention, attach
assert callable(attach) and attach is shuffle_attention.attach
import torch
assert torch.ops.shuffle_attention.shuffle_attention
"""


def test_names_are_loaded_when_first_used():
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], check=True)


def test_all_public_names_exist():
    assert {"__version__", *shuffle_attention.__all__} <= set(dir(shuffle_attention))
    for name in shuffle_attention.__all__:
        assert getattr(shuffle_attention, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Attention'"):
        _ = shuffle_attention.Attention


def test_old_paths_warn_and_lead_to_the_new_ones(monkeypatch):
    monkeypatch.delitem(sys.modules, "shuffle_attention.layers", raising=False)  # another test may have imported it
    with pytest.warns(DeprecationWarning, match=r"is now shuffle_attention\.attention"):
        from shuffle_attention.layers import ShuffleAttention
    assert ShuffleAttention is shuffle_attention.ShuffleAttention
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("shuffle_attention.nothing")
