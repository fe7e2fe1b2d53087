"""Memory that commands keep for the next step."""

import os
import platform
import subprocess
import sys

import pytest

from shuffle_attention.sanet import device
from shuffle_attention.sanet.device import open_process

FAULTS_PER_STEP = """
import resource
import torch
from shuffle_attention.sanet.device import open_process

def step():
    maps = [torch.ones(1 << 20) for _ in range(24)]  # 96 MiB, which all are freed together

with open_process("cpu"):
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
@pytest.mark.parametrize(("variables", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "65536"}, False)])
def test_steps_on_a_cpu_use_the_memory_of_the_step_before(variables, kept):
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS_PER_STEP]
    faults = int(subprocess.run(command, env=mine | variables, capture_output=True, check=True).stdout)
    assert faults < 1000 if kept else faults > 20_000  # of 24,576 pages


def test_a_server_returns_the_memory_of_its_largest_request(monkeypatch):
    kept = []
    monkeypatch.setattr(device, "keep_freed_memory", lambda: kept.append(True))
    with open_process("cpu", keep_memory=False):
        assert not kept
    with open_process("cpu"):
        assert kept
