"""Memory that commands keep for the next step."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS_PER_STEP = """
import resource
import torch
from shuffle_attention.sanet.device import open_process

def step():
    maps = [torch.ones(1 << 20) for _ in range(24)]  # 96 MiB, which all are freed together

with open_process("cpu", keep_memory={keep}):
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        step()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
@pytest.mark.parametrize(
    ("keep", "variables", "kept"),
    [(True, {}, True), (False, {}, False), (True, {"MALLOC_TRIM_THRESHOLD_": "65536"}, False)],
)
def test_steps_on_a_cpu_use_the_memory_of_the_step_before(keep, variables, kept):
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS_PER_STEP.format(keep=keep)]
    faults = int(subprocess.run(command, env=mine | variables, capture_output=True, check=True).stdout)
    assert faults < 1000 if kept else faults > 2000, faults  # of 24,576 pages
