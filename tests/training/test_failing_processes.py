"""Of several processes one is killed, fails, hangs or is stopped: real ones, on one machine."""

from __future__ import annotations

import json
import re
import shutil
import signal

import pytest
from programs import CONFIG, ended, read_until, start_several

from drsformer_jax.training.checkpoint import Run

pytestmark = pytest.mark.slow

DOUBLE = ("--model.dtype", "float64", "--model.param-dtype", "float64")
TRAIN = ("--config", "config.py", "--data.global-batch", 4, "--eval-every", 9000, *DOUBLE)
SECONDS = 30
"""The most that processes may take to end, once there is a reason."""


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def configured(place, name, patch):
    """A configuration that changes the program that reads it."""
    (place / name).write_text(patch + CONFIG.format(pairs=place / "pairs"))
    return ("--config", name, "--data.global-batch", 4)


def test_killed_processes_are_named_and_other_numbers_go_on_with_the_same_batches(run, place):
    train = (*TRAIN, "--workdir", "one_killed", "--checkpoint-every", 2)
    result = run("train", *train, "--steps", 2)
    assert result.returncode == 0, result.stderr
    for count, killed in ((4, 2), (2, 0)):
        processes = start_several(run, count, *train, "--steps", 9000)
        start = re.match(r"steps (\d+) ", read_until(processes[0], "steps "))
        read_until(processes[0], f"step {int(start[1]) + 4}/")
        processes[killed].kill()
        found = ended(processes, SECONDS)
        assert found.pop(killed)[0] == -signal.SIGKILL
        numbers = [number for number in range(count) if number != killed]
        for number, (status, _, errors) in zip(numbers, found, strict=True):
            assert status == 1
            assert re.search(
                rf"^error: process {killed} of {count} \(on \S+\) has ended while process {number} "
                rf"of {count} waited for (.* )?step \d+.*: it was killed, or cannot be reached; "
                "rerun the command in all processes to resume$",
                errors,
                re.MULTILINE,
            )
            assert "stack trace" not in errors
        assert start[1] != "0"
    end = max(losses(place / "one_killed")) + 2
    for name in ("one_killed", "never_killed"):
        result = run("train", *TRAIN, "--workdir", name, "--steps", end)
        assert result.returncode == 0, result.stderr
    found, expected = losses(place / "one_killed"), losses(place / "never_killed")
    assert list(found) == list(range(1, end + 1))
    assert found == pytest.approx(expected, rel=1e-8)


def test_process_that_fails_ends_its_run_with_its_reason_in_each(run, place):
    for part in ("input", "target"):
        (place / "broken" / part).mkdir(parents=True)
        content = (place / "pairs" / part / "0.png").read_bytes()
        (place / "broken" / part / "0.png").write_bytes(content)
    path = place / "broken" / "input" / "0.png"
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    results = ended(
        start_several(run, 2, *TRAIN, "--workdir", "two_failed", "--data.train", "broken")
    )
    assert "steps 0 to 4" in results[0][1], "it had begun to train"
    for status, _, errors in results:
        assert status == 1
        assert "broken/input/0.png is no image that can be read" in errors
        assert errors.splitlines()[-1].startswith("error: ")


def test_processes_that_do_not_share_the_folder_of_the_run_are_rejected_at_once(run, place):
    folders = [("--workdir", f"not_shared_{number}") for number in range(2)]
    for status, _, errors in ended(start_several(run, 2, *TRAIN, workers=folders), SECONDS + 30):
        assert status == 1
        line = "--workdir of process 1 is not that of process 0; expected a folder that all proce"
        assert line in errors


@pytest.mark.parametrize("second", ["gs://no-bucket/run-2", "not_shared_2"])
def test_processes_with_different_addresses_of_the_run_are_rejected_at_the_start(run, second):
    folders = [("--workdir", each) for each in ("gs://no-bucket/run-1", second)]
    for status, _, errors in ended(start_several(run, 2, *TRAIN, workers=folders), SECONDS + 30):
        assert status == 1
        assert "--workdir differs between the processes; expected the same in all" in errors


def test_hanging_step_is_ended_and_each_process_says_what_it_waits_for(run, place):
    hanging = configured(
        place,
        "hanging.py",
        "import sys, time\n"
        "from drsformer_jax.data.pipeline import RandomCrop\n"
        "crop, crops = RandomCrop.__call__, []\n"
        "def hang(*arguments):\n"
        "    crops.append(0)\n"
        "    if len(crops) > 40 and sys.argv[-1] == '1':\n"
        "        time.sleep(100)\n"
        "    return crop(*arguments)\n"
        "RandomCrop.__call__ = hang\n",
    )
    arguments = ("--workdir", "hanging", "--steps", 9000, "--eval-every", 9000)
    processes = start_several(run, 2, *hanging, *arguments, "--step-timeout", 6)
    results = ended(processes, 90)
    assert [status for status, *_ in results] == [1, 1]
    for number, wait in enumerate((r"step \d+ on the devices", r"the batch of step \d+")):
        warning = rf"^warning: process {number} of 2 has waited \d s for {wait}; after 6 s it ends"
        assert re.search(warning, results[number][2], re.MULTILINE)
    hung = r"^error: process \d of 2 has waited \d s for .*; expected less than 6 s"
    assert any(re.search(hung, errors, re.MULTILINE) for *_, errors in results)


def test_sigterm_to_one_process_ends_an_evaluation_of_several(run, place):
    for part in ("input", "target"):
        (place / "many_pairs" / part).mkdir(parents=True)
        for index in range(121):
            shutil.copy(
                place / "pairs" / part / "0.png", place / "many_pairs" / part / f"{index}.png"
            )
    slow = configured(
        place,
        "slow.py",
        "import time\n"
        "from drsformer_jax.scoring import evaluation\n"
        "score = evaluation.score\n"
        "def scored(*arguments):\n"
        "    print('scored', flush=True)\n"
        "    time.sleep(1)\n"
        "    return score(*arguments)\n"
        "evaluation.score = scored\n",
    )
    arguments = ("--workdir", "evaluating", "--data.validation", "many_pairs", "--eval-every", 2)
    processes = start_several(run, 2, *slow, *arguments)
    for _ in range(3):
        read_until(processes[0], "scored")
    processes[1].send_signal(signal.SIGTERM)
    results = ended(processes, SECONDS)
    assert [status for status, *_ in results] == [0, 0], results
    message = "stopped after step 2; its checkpoint is saved; rerun the command to resume"
    assert message in results[0][1].splitlines()
    assert json.loads((place / "evaluating" / "validation.json").read_text()) == {}
    with Run(place / "evaluating", keep=None) as saved:
        assert saved.steps() == [2]
