"""The networks that trials compare reach train.py as they are, and differ in what is compared."""

from pathlib import Path

import pytest
import trials

from drsformer_jax.scoring.complexity import parameters
from train import parse_command


@pytest.mark.parametrize("arm", trials.ARMS)
def test_each_network_is_what_the_command_line_trains(arm):
    command = parse_command(trials.options(trials.ARMS[arm], 7, Path("folder") / arm))
    assert command.train.model == trials.ARMS[arm]
    assert command.workdir == Path("folder") / arm
    assert (
        command.train.steps == command.train.eval_every == command.train.optim.constant_steps == 7
    )


def test_networks_differ_in_attention_feed_forward_and_size():
    models = trials.ARMS.values()
    assert {model.attention for model in models} == {"topk", "dense"}
    assert {model.feed_forward for model in models} >= {"gdfn", "msfn"}
    assert all(4e5 <= parameters(model) <= 3e6 for model in models)


def test_recipe_learns_from_synthetic_rain_alone():
    data = trials.load_config(trials.CONFIG).data
    assert (data.train, data.validation, data.sources) == ("synthetic", "synthetic", ())
