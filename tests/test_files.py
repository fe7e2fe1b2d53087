"""Files that are written whole, whatever interrupts it, and folders that one process has."""

import json
import math
import os

import pytest

from shuffle_attention.errors import InputError
from shuffle_attention.files import atomic_write, locked, write_json


def test_what_stops_the_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("before")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", "no bytes"])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["figures.csv"]


def test_a_signal_right_after_the_replacement_is_not_lost(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*arguments):
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "figures.csv") as file:
        file.write(b"whole")
    assert (tmp_path / "figures.csv").read_text() == "whole"


def test_what_is_no_number_is_null_in_json(tmp_path):
    write_json(tmp_path / "figures.json", {"loss": math.nan, "of": [(1, -math.inf), "NaN", None, True]})
    read = json.loads((tmp_path / "figures.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"loss": None, "of": [[1, None], "NaN", None, True]}


def test_a_folder_is_had_by_one_at_a_time(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InputError, match="another process is working in"), locked(tmp_path):
            pass
        with pytest.raises(InputError), locked(tmp_path):  # the refused one has not let it go
            pass
    with locked(tmp_path):
        pass
