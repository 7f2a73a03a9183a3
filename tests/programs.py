"""train.py, eval.py and drsformer in real processes, which may begin as forks of one."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

ROOT = Path(__file__).parents[1]
# One module of machine code a program: splitting it takes longer than the second core saves.
UNOPTIMIZED = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # Programs end at flags that their XLA does not know.
    UNOPTIMIZED += " --xla_cpu_use_fusion_emitters=false"  # They take half the time to compile.
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


_ALSO = [each for each in [os.environ.get("PYTHONPATH")] if each]
FORKS = """
import atexit, faulthandler, json, os, sys, warnings

def leave():
    if statuses and len(os.listdir("/proc/self/task")) == 2:  # This thread and faulthandler's.
        sys.stdout.flush()
        os._exit(statuses.pop())

statuses = []  # Of a fork, when its program has ended.
if os.path.isdir("/proc/self/task"):
    atexit.register(leave)  # First, so that it is called last.
from drsformer_jax.errors import before_imports
before_imports()
import eval, jax, train
# What the programs import while they run.
import grain, matplotlib.figure, tensorflow_datasets
import drsformer_jax.report.page, drsformer_jax.training.tensorboard
from drsformer_jax import cli

for command in cli.COMMANDS:
    cli.load(command)
mains = {"train": train.main, "eval": eval.main, "drsformer": cli.main}
for line in sys.stdin:
    program, *arguments, environment = json.loads(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of threads that importing has started.
        child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(os.path.join(sys.argv[1], name), flags), number)
        faulthandler.dump_traceback_later(300, exit=True, file=2)
        os.environ.clear()
        os.environ.update(environment)
        # As JAX does when it is imported.
        limit = int(environment.get("JAX_COMPILATION_CACHE_MAX_SIZE", -1))
        jax.config.update("jax_compilation_cache_dir", environment.get("JAX_COMPILATION_CACHE_DIR"))
        jax.config.update("jax_compilation_cache_max_size", limit)
        sys.argv = [program, *arguments]
        try:
            mains[program]()
        except SystemExit as end:
            statuses.append(end.code if isinstance(end.code, int) else int(end.code is not None))
            raise
        break  # And ends as any program does.
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_without_the_package(code, folder):
    """Runs Python in a folder, where drsformer_jax cannot be imported; it must succeed."""
    result = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['drsformer_jax'] = None\n" + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


class Program(subprocess.Popen):
    """A process that has to print where it hangs, and to end with its block."""

    def communicate(self, input=None, timeout=300):
        try:
            return super().communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGABRT)  # PYTHONFAULTHANDLER prints the stacks.
            try:
                said = super().communicate(timeout=20)
            except subprocess.TimeoutExpired as error:  # Its own children hold the pipes.
                said = (error.output, error.stderr)
            raise AssertionError(f"{self.args} hangs: {said}") from None

    def wait(self, timeout=300):
        return super().wait(timeout)

    def __exit__(self, *error):
        if error[0] is not None:
            self.kill()
        try:
            super().__exit__(*error)
        finally:
            self.kill()


class Programs:
    """Runs programs in a folder."""

    def __init__(self, folder):
        self._options = {
            "text": True,
            "cwd": folder,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *_ALSO]),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_FLAGS": UNOPTIMIZED,
            "PYTHONFAULTHANDLER": "1",
        }
        self._programs = {
            "train": [str(ROOT / "train.py")],
            "eval": [str(ROOT / "eval.py")],
            "drsformer": ["-m", "drsformer_jax"],
        }
        self._forks = None

    def start(self, program, *arguments, environment=None, **options):
        command = [sys.executable, *self._programs[program], *map(str, arguments)]
        options = {**self._options, **options}
        return Program(command, env=environment or self.environment, **options)

    def __call__(self, program, *arguments, environment=None):
        """Runs a program to its end: in its own process if it has an environment of its own."""
        if environment is None:
            return self.forked(program, *arguments)
        with self.start(program, *arguments, environment=environment) as process:
            output, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def forked(self, program, *arguments, environment=None):
        """Runs it in a fork of a process that has imported all programs: seconds less each.

        That process computes nothing, so that JAX has no threads in it: they would not outlive a
        fork. What is read from the environment while importing is the same for all. A fork that
        rejects what it is given, before there are threads, ends without freeing what was imported:
        that takes longer than all the rest.
        """
        if self._forks is None:
            self._outputs = Path(tempfile.mkdtemp())
            command = [sys.executable, "-c", FORKS, self._outputs]
            pipes = {**self._options, "stdin": subprocess.PIPE, "stderr": None}
            self._forks = subprocess.Popen(command, env=self.environment, **pipes)
        line = [program, *map(str, arguments), environment or self.environment]
        print(json.dumps(line), file=self._forks.stdin, flush=True)
        status = self._forks.stdout.readline()
        assert status, "the process that forks has ended"
        texts = []
        for name in ("out", "err"):
            texts.append((self._outputs / name).read_text())
            (self._outputs / name).unlink()
        return subprocess.CompletedProcess(line[:-1], int(status), *texts)

    def close(self):
        if self._forks is not None:
            self._forks.communicate()
            shutil.rmtree(self._outputs)


def start_several(run, count, *arguments, devices=1, workers=None):
    """Starts train.py several times as one run, each process with so many virtual devices.

    `workers` are further arguments of each.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = f"{UNOPTIMIZED} --xla_force_host_platform_device_count={devices}"
    several = ("--coordinator-address", address, "--num-processes", count, "--process-id")
    return [
        run.start(
            *("train", *arguments, *(workers[process] if workers else ()), *several, process),
            environment={**run.environment, "XLA_FLAGS": flags},
        )
        for process in range(count)
    ]


def ended(processes, timeout=300):
    """Exit status, output and errors of each, of what was not read before."""
    try:
        said = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def read_until(process, start):
    """Reads the lines that a process prints, to the first that starts so."""
    for line in process.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(process.communicate())


def rejected(result, message):
    """Asserts that a program ended with one clear line."""
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert re.search(message, last), last
