"""A trace of some steps for XProf, Perfetto or TensorBoard's profile page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax

from drsformer_jax.errors import InputError


class Profile:
    """Traces devices and host with `jax.profiler` in a range of steps.

    Args:
        steps: the first and the last step, as in 10:12; None for no trace.
        enabled: whether to trace at all; only the first of a run's processes does, since those of
            one machine would write one file.

    Raises:
        InputError: if `steps` is not a range.
    """

    def __init__(self, steps: str | None, enabled: bool = True) -> None:
        match = re.fullmatch(r"(\d+):(\d+)", steps or "0:0")
        self._first, self._last = map(int, match.groups()) if match else (0, -1)
        if self._first > self._last or (steps and not self._first):
            raise InputError(f"--profile is {steps}; expected FROM:TO, two steps such as 10:12")
        self._enabled = enabled
        self._runs = False

    def misses(self, start: int, end: int) -> bool:
        """Whether none of the steps after `start`, up to `end`, is in the range."""
        return self._first > 0 and not (self._first <= end and start < self._last)

    def before(self, step: int, folder: Path) -> None:
        """Call it before a step begins, with the folder for the trace."""
        if self._enabled and self._first <= step <= self._last and not self._runs:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # It hooks threads that end meanwhile: it can crash.
            jax.profiler.start_trace(str(folder), profiler_options=options)
            self._runs = True

    def after(self, step: int, results: Any) -> None:
        """Call it with the results of a step, which may still be computing."""
        if self._runs and step == self._last:
            jax.block_until_ready(results)
            self._end()

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._runs = False

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, *error: object) -> None:
        if self._runs:
            self._end()
