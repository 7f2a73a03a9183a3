"""Scores of a run over its validation pairs, in `validation.json`; they decide on the best step."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drsformer_jax.config import TrainConfig
from drsformer_jax.errors import InputError
from drsformer_jax.files import write_text
from drsformer_jax.training.reporting import finite

SCORES_FILE = "validation.json"


class ValidationScores:
    """Mean scores by step: the protocol that computed them, PSNR in dB, SSIM, digest of the pairs.

    Args:
        path: the file that holds them; there need be none yet.

    Raises:
        InputError: if the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_step: dict[int, dict[str, Any]] = {}
        if not path.exists():
            return
        try:
            self._by_step = {
                int(step): {**score, "protocol": score["protocol"], "psnr": _number(score["psnr"])}
                for step, score in json.loads(path.read_text()).items()
            }
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise InputError(
                f"{path} is damaged ({error}); expected the scores that training wrote, or no such "
                "file"
            ) from None

    def __contains__(self, step: int) -> bool:
        return step in self._by_step

    def clear(self, after: int = -1) -> None:
        """Drops the scores of steps after this one, or all."""
        self._by_step = {step: each for step, each in self._by_step.items() if step <= after}

    def keep(self, pairs: str) -> None:
        """Drops the scores of other pairs than those of this digest; older ones do not say."""
        self._by_step = {
            step: each for step, each in self._by_step.items() if each.get("pairs", pairs) == pairs
        }

    def add(self, step: int, protocol: str, psnr: float, ssim: float, pairs: str = "") -> None:
        """Records the scores of a step, and the digest of their pairs if it is known."""
        found = {"protocol": protocol, "psnr": psnr, "ssim": ssim}
        self._by_step[step] = found | ({"pairs": pairs} if pairs else {})

    def write(self) -> None:
        """Writes the file anew, as JSON of finite numbers, "inf" and null (NaN)."""
        scores = {
            step: finite({**score, "psnr": "inf" if score["psnr"] == math.inf else score["psnr"]})
            for step, score in self._by_step.items()
        }
        write_text(self._path, json.dumps(scores, indent=2, allow_nan=False) + "\n")

    def best(self, steps: Sequence[int]) -> int | None:
        """Which of the steps has the best PSNR by the protocol of their latest score.

        Returns:
            The later of equally good ones; the last step if none has a score; None without steps.
        """
        scored = [step for step in steps if step in self._by_step]
        if not scored:
            return max(steps, default=None)
        protocol = self._by_step[max(scored)]["protocol"]
        psnr = {
            step: self._by_step[step]["psnr"]
            for step in scored
            if self._by_step[step]["protocol"] == protocol
        }
        return max(psnr, key=lambda step: (not math.isnan(psnr[step]), psnr[step], step))


def pairs_of(config: TrainConfig) -> tuple[Any, ...]:
    """What the validation pairs depend on: only scores of the same pairs can be compared."""
    data = config.data
    if data.validation != "synthetic":
        return (data.validation,)
    rain = dataclasses.replace(data.rain, none=0.0)  # As it is scored.
    return data.validation, data.photographs, rain, data.validation_rains, config.seed


def _number(psnr: float | str | None) -> float:
    """A PSNR as it is in the file: a number, "inf", or null for NaN."""
    return math.nan if psnr is None else float(psnr)
