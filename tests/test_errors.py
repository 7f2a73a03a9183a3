import signal
import subprocess
import sys

import pytest

SIGNAL_AT_GARBAGE_COLLECTION = """
import signal, time
import jax
from jax._src import lib
from drsformer_jax.errors import one_line_errors

# The name of JAX's own callback, which Python calls and whose exceptions it ignores.
assert hasattr(lib, "_xla_gc_callback")
def _xla_gc_callback():
    signal.raise_signal({number})
with one_line_errors():
    try:
        _xla_gc_callback()
    except BaseException:
        print("lost")
    time.sleep(600)
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_during_garbage_collection_is_not_lost(number, status):
    program = SIGNAL_AT_GARBAGE_COLLECTION.format(number=int(number))
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
