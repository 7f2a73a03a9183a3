"""train.py, eval.py and drsformer as users run them: real processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNOPTIMIZED = "--xla_backend_optimization_level=0"
CONFIG = """
from drsformer_jax.config import DataConfig, ModelConfig, OptimConfig, TrainConfig

def get_config():
    return TrainConfig(
        model=ModelConfig(
            dim=4, blocks=(1, 1, 1, 1), heads=(1, 1, 1, 1), encoder_level0="none",
            refinement="none", attention="dense", feed_forward="fn",
        ),
        data=DataConfig(train="{pairs}", validation="{pairs}", crop_size=16, global_batch=2),
        optim=OptimConfig(learning_rate=1e-3, constant_steps=2, cosine_steps=2),
        steps=4, log_every=1, eval_every=4, checkpoint_every=2, protocol="rain200_spa",
    )
"""


class Programs:
    """Runs programs in a folder; they share compiled code as one user's do."""

    def __init__(self, folder):
        self._options = {
            "text": True,
            "cwd": folder,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        self.environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": UNOPTIMIZED,
        }
        self._programs = {
            "train": [str(ROOT / "train.py")],
            "eval": [str(ROOT / "eval.py")],
            "drsformer": ["-m", "drsformer_jax"],
        }

    def start(self, program, *arguments, environment=None, **options):
        command = [sys.executable, *self._programs[program], *map(str, arguments)]
        options = {**self._options, **options}
        return subprocess.Popen(command, env=environment or self.environment, **options)

    def __call__(self, program, *arguments, environment=None):
        with self.start(program, *arguments, environment=environment) as process:
            output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def refused(result, message):
    """Asserts that a program ended with one clear line."""
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
