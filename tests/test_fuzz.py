"""Damaged files are read with the right values or refused; a few of each format, of which ``make fuzz`` tries many."""

import time

import pytest

import fuzz


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_damaged_files_are_read_rightly_or_refused(name):
    fuzz.valid_file(name)
    start = time.monotonic()
    outcomes = [fuzz.attempt(name, seed) for seed in range(10)]
    assert time.monotonic() - start < fuzz.SECONDS
    assert "refused" in outcomes
