"""How much memory restoring takes, and how much there is."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import psutil

from drsformer_jax.config import ModelConfig
from drsformer_jax.nn.rows import MAX_HALO
from drsformer_jax.ops.implementations import NARROW

# Channels alive at once at full resolution, for each channel of the last level, or for each hidden
# one of its feed-forward network: what XLA reports for programs compiled for CPUs, rounded up.
_ATTENTION = 13.0
_EXPERTS = 17.5
_FEED_FORWARD = {"msfn": 11.1, "gdfn": 5.6, "dfn": 4.0, "fn": 2.5}
# CPUs compute these in strips of their own, unless the image is narrow. What the gated network then
# takes does not depend on its hidden channels.
_ATTENTION_ON_CPU = 3.6
_GATED_ON_CPU = 4.7
_MSFN_ON_CPU = 2.2
# Bytes that those strips take of images of 256 columns; in proportion more of wider ones, but
# little against the image unless that is very low.
_STRIPS_ON_CPU = 10 * 2**20
# The same for what strips do not cut: the features between the network's layers.
_HELD = 4.5
_MARGIN = 1.5
_GROUPS = Path("/sys/fs/cgroup")


def forward_bytes(config: ModelConfig, height: int, width: int) -> int:
    """Bytes that restoring one image takes beside the parameters: an estimate.

    Args:
        config: the network.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    channels = 2 * config.dim
    in_strips = jax.default_backend() == "cpu" and width >= NARROW
    fixed = _STRIPS_ON_CPU if in_strips else 0
    each = _bytes_each(config) * height * width
    attention = (_ATTENTION_ON_CPU if in_strips else _ATTENTION) * channels * each + fixed
    hidden = _FEED_FORWARD[config.feed_forward] * config.hidden(channels) * each
    if config.feed_forward == "msfn" and in_strips:
        hidden = _MSFN_ON_CPU * config.hidden(channels) * each + fixed
    if config.feed_forward == "gdfn" and in_strips:
        hidden = _GATED_ON_CPU * channels * each + fixed
    experts = "mefc" in (config.encoder_level0, config.refinement)
    alive = attention, hidden, _EXPERTS * channels * each * experts
    return int(max(alive))


def strips_bytes(config: ModelConfig, height: int, width: int, strip: int) -> int:
    """The same for an image that is computed in strips.

    Args:
        config: the network.
        height: of the image, in pixels.
        width: of the image, in pixels.
        strip: height of the strips, in pixels.
    """
    held = int(_HELD * 2 * config.dim * _bytes_each(config) * height * width)
    return held + forward_bytes(config, strip + 2 * MAX_HALO, width)


def _bytes_each(config: ModelConfig) -> int:
    # For CPUs some versions of XLA compute bfloat16 in float32.
    narrow = config.dtype == "bfloat16" and jax.default_backend() != "cpu"
    return 2 if narrow else 8 if config.dtype == "float64" else 4


@functools.cache
def budget() -> int:
    """`available_bytes` when it was first asked for, the same for the rest of the process.

    Otherwise another program's memory could decide in the middle of a run that images are computed
    in another way from then on, whose results differ by rounding.
    """
    return available_bytes()


def available_bytes() -> int:
    """Bytes that a program may take: free memory of the accelerator, or of the machine.

    A margin is left for what else is going on.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    else:
        free = min([psutil.virtual_memory().available, *_free_of_groups()])
    return int(free / _MARGIN)


def _free_of_groups() -> Iterator[int]:
    """What the limits of containers and batch systems leave (Linux control groups, version 2)."""
    try:
        own = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::/")
    except OSError:
        return
    group = _GROUPS / own
    for folder in (group, *group.parents):
        # Without a limit the file holds a word, and the root has no file.
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / "memory.max").read_text())
            used = int((folder / "memory.current").read_text())
            # Files that were read stay in memory until it is needed for something else.
            cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.M)
            yield max(limit - used + (int(cached[1]) if cached else 0), 0)
