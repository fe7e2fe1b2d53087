"""Reserve the folder named on the command line, print the process id of a forked worker, and sleep."""

import os
import sys
import time
from pathlib import Path

from shuffle_attention.sanet.training.run_lock import run_lock

with run_lock(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
