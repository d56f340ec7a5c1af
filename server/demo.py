"""``fed-server demo``: a whole federation on this machine, by the same commands that hospitals would use.

Three phantom sites are invited, enrolled and approved over real TLS, they train, a signed model is released to them,
and one of them draws a map with it. Every command is shown as it is given.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen, TimeoutExpired

import yaml
from PIL import Image

from fedgan.cohort.cohort import ABNORMAL
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.errors import EngineFailed, HomeError
from fedgan.processes import free_port, keep_path, process_group, tail_of

SITES = ("A", "B", "C")

WAIT_S = 180.0
"""For what takes a few seconds on a machine that has nothing else to do."""

SETTINGS = (
    "name=demo",
    "rounds=10",
    "local_steps=10",
    "quorum=3",
    "data.size=32",
    "data.diseases=[diffuse]",
    "model.batch_size=4",
    "compress=int8",
)

Say = Callable[[str], None]
