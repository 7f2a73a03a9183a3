import subprocess
import sys

EIGHT_DEVICES = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
import jax, numpy as np
from drsformer_jax.data.pipeline import on_device
from drsformer_jax.sharding import batch_sharding, data_mesh

sharding = batch_sharding(data_mesh(jax.devices()))
rainy = np.arange(16 * 2 * 2 * 3, dtype=np.uint8).reshape(16, 2, 2, 3)
batch = {"name": ["x"] * 16, "rainy": rainy, "clean": 255 - rainy, "skipped": []}
((given, pictures),) = on_device((each for each in [batch]), sharding)
assert given is batch
for name, whole in (("rainy", rainy), ("clean", 255 - rainy)):
    assert pictures[name].shape == (16, 2, 2, 3)
    pieces = pictures[name].addressable_shards
    assert len({piece.device for piece in pieces}) == 8
    for number, piece in enumerate(pieces):
        np.testing.assert_array_equal(piece.data, whole[2 * number : 2 * number + 2])
"""


def test_batches_lie_in_order_on_all_devices():
    # The number of devices is fixed before JAX starts, so this needs a process of its own.
    ended = subprocess.run([sys.executable, "-c", EIGHT_DEVICES], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
