"""The lock of a run's folder."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from shuffle_attention.errors import InputError
from shuffle_attention.sanet.training.run_lock import run_lock


def test_a_folder_is_reserved_by_one_process_at_a_time(tmp_path):
    with run_lock(tmp_path):
        with pytest.raises(InputError, match="another process is working in"), run_lock(tmp_path):
            pass
        with pytest.raises(InputError), run_lock(tmp_path):  # the refusal has not released it
            pass
    with run_lock(tmp_path):
        pass


def test_where_workers_inherit_the_lock_it_is_waited_for_with_a_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sys, "version_info", (3, 10))
    acquire, timeouts = filelock.FileLock.acquire, []

    def soon(lock, timeout):
        timeouts.append(timeout)
        return acquire(lock, timeout=0)

    with run_lock(tmp_path):
        assert not caplog.messages
        monkeypatch.setattr(filelock.FileLock, "acquire", soon)
        with pytest.raises(InputError, match="another process is working in"), run_lock(tmp_path):
            pass
    assert timeouts == [0, 6]
    assert caplog.messages == [f"waiting up to 6 seconds for another process to leave {tmp_path}"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_process_releases_its_folder_while_its_workers_live_on(tmp_path):
    script = Path(__file__).parents[2] / "programs" / "hold_folder.py"
    process = subprocess.Popen([sys.executable, script, tmp_path], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    with pytest.raises(InputError), run_lock(tmp_path):
        pass
    process.kill()
    process.wait()
    try:
        with run_lock(tmp_path):
            os.kill(worker, 0)  # it still runs
    finally:
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()
