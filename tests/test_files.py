"""Files that are written completely or not at all, and error messages."""

import errno
import json
import math
import os

import pytest

from shuffle_attention.errors import unknown
from shuffle_attention.files import atomic_write, write_csv, write_json


def test_an_interrupted_write_leaves_the_previous_content(tmp_path):
    path = tmp_path / "figures.csv"
    path.write_text("before")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"half", "no bytes"])
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["figures.csv"]


def test_a_signal_right_after_the_replacement_is_raised(tmp_path, monkeypatch):
    replace = os.replace

    def interrupted(*arguments):
        replace(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "figures.csv") as file:
        file.write(b"whole")
    assert (tmp_path / "figures.csv").read_text() == "whole"


def test_nan_and_infinity_are_null_in_json(tmp_path):
    write_json(tmp_path / "figures.json", {"loss": math.nan, "of": [(1, -math.inf), "NaN", None, True]})
    read = json.loads((tmp_path / "figures.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read == {"loss": None, "of": [[1, None], "NaN", None, True]}


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .*scores.json"):
        write_json(tmp_path / "scores.json", {})


def test_csv_has_ten_digits_and_empty_cells(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"name": "a, b", "loss": 1 / 3}, {"name": "c"}], ["name", "loss"])
    assert (tmp_path / "rows.csv").read_text() == 'name,loss\n"a, b",0.3333333333\nc,\n'
    write_csv(tmp_path / "rows.csv", [])
    assert (tmp_path / "rows.csv").read_text() == ""


def test_an_unknown_name_is_answered_with_close_ones_or_all():
    assert str(unknown("attention", "shufle", ["se", "shuffle"])) == (
        "no attention 'shufle'; did you mean shuffle? there are se, shuffle"
    )
    assert str(unknown("model", "xyz", [str(n) for n in range(22)])).endswith("18, 19 and 2 more")
