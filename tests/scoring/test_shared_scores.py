"""Processes that score together compute images in the same way; real processes, on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from programs import ROOT

PROGRAM = """
import sys

from recipe import SMALL

from drsformer_jax.restoring import Restorer
from drsformer_jax.scoring.evaluation import shared_scores
from drsformer_jax.training import processes


class Pairs:
    def __len__(self):
        return 2

    def size(self, index):
        return 64, 64


index = int(sys.argv[2])
processes.join(sys.argv[1], 2, index)
restorer = Restorer(SMALL, {}, memory=(10**10, 10**4)[index])
before = restorer.rows((64, 64))
assert shared_scores(restorer, Pairs(), "rain200_spa", stop=lambda: True) is None
print(restorer.memory, before is not None, restorer.rows((64, 64)))
"""


def test_processes_agree_on_the_least_memory():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(index)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    # The connection prints too, in no fixed order.
    for expected, (output, _) in zip(("10000 True None", "10000 False None"), said, strict=True):
        assert expected in output.splitlines(), said
