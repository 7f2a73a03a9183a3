"""The paper's ablations, small: which feed-forward network, and a softmax over which scores.

    python configs/ablation.py [--workdir runs/ablation] [flags of train.py]

trains five networks one after another with `train.py` and prints what each reached after its last
step, beside what the paper has for the whole network on Rain200H. They differ in
`--model.feed-forward` or `--model.attention` only, and share seed, batches and schedule. Hidden
channels are `--model.expansion` times the channels in all of them, so their sizes differ. The same
command continues where it was stopped. `--data.train DIR --data.validation DIR` takes other pairs,
`--config configs/rain200h.py` all of the paper's recipe, which was not tried.

For a CPU: 30 minutes on 2 busy cores of an AMD EPYC, with an earlier
version of the synthetic rain. So short a training of so small a network says little about the
paper's, and depends on the seed: GDFN was 1.13 dB above FN with one seed and 0.49 dB with another.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.resources
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from drsformer_jax.config import PRESETS, DataConfig, OptimConfig, RainConfig, TrainConfig
from drsformer_jax.config.file import load_config

STEPS = 600
ARMS: Mapping[str, tuple[str, str]] = {
    "fn": ("fn", "topk"),
    "dfn": ("dfn", "topk"),
    "gdfn": ("gdfn", "topk"),
    "msfn": ("msfn", "topk"),
    "msfn_dense": ("msfn", "dense"),
}
"""Feed-forward network and attention of each arm, by the name of its folder."""
_OWN_FLAGS = {"--model.feed-forward", "--model.attention"}


def get_config() -> TrainConfig:
    """Returns the configuration of the arm `msfn`."""
    return TrainConfig(
        model=dataclasses.replace(
            PRESETS["tiny"], dim=8, blocks=(1, 1, 1, 1), feed_forward="msfn", attention="topk"
        ),
        data=DataConfig(
            train="synthetic",
            validation="synthetic",
            rain=RainConfig.only("light"),
            crop_size=64,
            global_batch=4,
        ),
        optim=OptimConfig(
            learning_rate=3e-3,
            constant_steps=STEPS // 3,
            cosine_steps=STEPS - STEPS // 3,
            clip_norm=1.0,
        ),
        steps=STEPS,
        eval_every=STEPS,
        checkpoint_every=200,
        protocol="rain200_spa",
    )


class Result(NamedTuple):
    """What an arm reached after its last step."""

    parameters: str
    psnr: float
    ssim: float
    config: Mapping[str, Any]
    """Its `config.json`."""


def main() -> None:
    """Trains the arms that are not finished, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--config", type=Path, default=Path(__file__))
    options, flags = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        check_settings(options.workdir, options.config, flags)
        print(table([run_arm(arm, options.workdir, options.config, flags) for arm in ARMS]))
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)


def check_settings(workdir: Path, config: Path, flags: Sequence[str]) -> None:
    """Rejects settings that would differ between arms, of which some may be trained already."""
    for flag in flags:
        if flag.partition("=")[0].replace("_", "-") in _OWN_FLAGS:
            sys.exit(f"error: {flag} is what the arms differ in; expected another flag of train.py")
    try:
        base = dataclasses.asdict(load_config(config))
    except ValueError as error:  # An InputError, which is one line.
        sys.exit(f"error: {error}")
    path = workdir / "settings.json"
    settings = json.dumps({"config": base, "flags": list(flags)})
    if not path.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(settings, "utf-8")
    elif path.read_text("utf-8") != settings:
        sys.exit(
            f"error: {workdir} was started with other flags or another configuration, which {path} "
            "holds; expected the same, or another --workdir"
        )


def run_arm(arm: str, workdir: Path, config: Path, flags: Sequence[str]) -> Result:
    """Trains an arm to its end, where it is not there, and reads what it reached."""
    if done := result(workdir / arm):
        return done
    feed_forward, attention = ARMS[arm]
    program = Path(__file__).parents[1] / "train.py"
    arguments = ["--config", str(config), *flags, "--workdir", str(workdir / arm)]
    arguments += ["--model.feed-forward", feed_forward, "--model.attention", attention]
    print(f"{arm}: python {shlex.join([str(program), *arguments])}", flush=True)
    with subprocess.Popen([sys.executable, str(program), *arguments]) as process:
        try:
            process.wait()
        except BaseException:  # It would go on without this program.
            process.terminate()
            process.wait()
            raise
    if process.returncode:
        if not any((workdir / each / "config.json").exists() for each in ARMS):
            (
                workdir / "settings.json"
            ).unlink()  # Nothing was trained by them, such as wrong flags.
        sys.exit(f"error: the arm {arm} ended with status {process.returncode}, as reported above")
    if done := result(workdir / arm):
        return done
    sys.exit(f"error: the arm {arm} was stopped before its last step; the same command continues")


def result(folder: Path) -> Result | None:
    """What the run in a folder reached; None where it is not finished."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        overview = (folder / "parameters.txt").read_text("utf-8")
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    except FileNotFoundError:
        return None
    total = re.search(r"^Total: ([\d,]+)", overview, re.MULTILINE)
    parameters = total[1] if total else "unknown"
    name = f"validation/{config['protocol']}"
    for line in lines:
        with contextlib.suppress(json.JSONDecodeError):  # A killed run may leave half a line.
            values = json.loads(line)
            if values["step"] == config["steps"] and f"{name}/psnr" in values:
                scores = values[f"{name}/psnr"], values[f"{name}/ssim"]
                return Result(parameters, *scores, config)
    return None


def table(results: Sequence[Result]) -> str:
    """Results in the order of `ARMS`, beside published ones, as lines for people."""
    return "\n".join(_lines(dict(zip(ARMS, results, strict=True))))


def _lines(results: Mapping[str, Result]) -> Iterator[str]:
    file = importlib.resources.files("drsformer_jax.scoring") / "published_results.json"
    published = json.loads(file.read_text("utf-8"))["ablation"]
    config = results["fn"].config
    yield (
        f"{config['steps']} steps on {config['data']['train']}, seed {config['seed']}, protocol "
        f"{config['protocol']}; published: the whole network on Rain200H"
    )
    yield (
        "feed-forward  attention  parameters   PSNR    SSIM  to FN    published PSNR    SSIM  to FN"
    )
    for arm, (feed_forward, attention) in ARMS.items():
        row = results[arm]
        line = (
            f"{feed_forward:12}  {attention:9}  {row.parameters:>10}  {row.psnr:5.2f}  "
            f"{row.ssim:6.4f}  {row.psnr - results['fn'].psnr:+5.2f}"
        )
        if attention == "topk":  # Of dense attention the paper shows images alone.
            paper = published[feed_forward.upper()]
            line += (
                f"    {paper['psnr']:14.2f}  {paper['ssim']:6.4f}  "
                f"{paper['psnr'] - published['FN']['psnr']:+5.2f}"
            )
        yield line
    gain = results["msfn"].psnr - results["msfn_dense"].psnr
    yield f"top-k instead of dense attention: {gain:+.2f} dB; the paper has images, no figures"
    yield "One run of each: with another seed the differences are others."


if __name__ == "__main__":
    main()
