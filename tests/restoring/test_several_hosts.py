"""One big image restored by two processes together; real ones, on one machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from programs import ROOT, UNOPTIMIZED

from drsformer_jax import weights
from drsformer_jax.errors import InputError
from drsformer_jax.restoring import Restorer

PROGRAM = """
import sys

import jax
import numpy as np

from drsformer_jax import weights
from drsformer_jax.nn.rows import Shards
from drsformer_jax.restoring import Restorer
from drsformer_jax.restoring.memory import forward_bytes
from drsformer_jax.training import processes

address, index, model, image, target = sys.argv[1:]
with processes.ended_together():
    processes.join(address, 2, int(index))
    config, params = weights.load(model)
    devices = jax.device_count()
    memory = forward_bytes(config, 104, 144) + 10**6 * int(index)  # They take the least.
    restorer = Restorer(config, params, memory=memory, devices=devices)
    assert restorer.rows((136, 144)) == Shards(count=devices)
    np.save(target, restorer(np.load(image)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_an_image_beyond_memory_is_shared_by_the_devices_of_two_processes(model, tmp_path, devices):
    image = np.random.default_rng(0).integers(0, 65536, (131, 141, 3), np.uint16)
    np.save(tmp_path / "image.npy", image)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{UNOPTIMIZED} --xla_force_host_platform_device_count={devices}"
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, address, str(index), model),
                *(tmp_path / "image.npy", tmp_path / f"{index}.npy"),
            ],
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        said = [process.communicate(timeout=200) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
    found, other = (np.load(tmp_path / f"{index}.npy") for index in range(2))
    np.testing.assert_array_equal(found, other)
    alone = Restorer(*weights.load(model), tile=0)(image)
    difference = np.abs(found.astype(int) - alone)
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.01


def test_devices_of_some_processes_are_rejected(network):
    there = jax.device_count()
    with pytest.raises(InputError, match=f"the devices are {there + 1}; expected at most {there}"):
        Restorer(*network, devices=there + 1)
