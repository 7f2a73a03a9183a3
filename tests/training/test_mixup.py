import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from steps import ShardedStep, replace_network

from drsformer_jax.config import DataConfig, TrainConfig
from drsformer_jax.training.step import mixup

VALUES = np.array([1.0, 10.0, 100.0, 1000.0])


@pytest.fixture(scope="module")
def blend():
    """Mixup by many keys at once."""
    return jax.jit(jax.vmap(mixup, in_axes=(0, None, None)))


def permutation_and_share(found):
    """The permutation P and the share s for which found = s VALUES + (1 - s) P VALUES."""
    for order in itertools.permutations(range(4)):
        partners = VALUES[list(order)]
        moved = partners != VALUES
        shares = ((found - partners)[moved] / (VALUES - partners)[moved]).tolist() or [1.0]
        if np.allclose(found, shares[0] * VALUES + (1 - shares[0]) * partners, rtol=1e-4):
            return order, shares[0]
    raise AssertionError(f"{found} is no blend of {VALUES} with a permutation of them")


def test_rainy_and_clean_are_blended_alike_with_a_permutation_of_the_batch(blend):
    rainy = jnp.broadcast_to(jnp.float32(VALUES)[:, None, None, None], (4, 2, 2, 3))
    keys = jax.random.split(jax.random.key(0), 64)
    blended, clean = map(np.asarray, blend(keys, rainy, 2 * rainy))
    np.testing.assert_allclose(clean, 2 * blended, rtol=1e-6)
    np.testing.assert_array_equal(blended, np.broadcast_to(blended[..., :1, :1, :1], blended.shape))
    orders = set()
    for found in blended[..., 0, 0, 0]:
        order, share = permutation_and_share(found)
        assert -1e-6 <= share <= 1 + 1e-6
        orders.add(order)
    assert len(orders) > 10


def test_half_of_the_batches_stay_and_shares_have_their_beta_distribution(blend):
    # Of two images, 0 and 1, the first becomes 1 - s if they change places, and stays else.
    pair = jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    first = np.asarray(blend(keys, pair, pair)[0])[:, 0, 0, 0, 0]
    blended = first[first > 0]
    # Half are blended at all, and half of those with themselves.
    assert abs(len(blended) / draws - 1 / 4) < 4 * math.sqrt(1 / 4 * 3 / 4 / draws)
    # Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2 a + 1)), here 0.0735; the bounds are
    # four standard errors, and a = 1 or 1.4 would give 0.0833 or 0.0658.
    assert abs(blended.mean() - 1 / 2) < 0.016
    assert abs(blended.var() - 1 / (4 * (2 * 1.2 + 1))) < 0.0035


def test_a_step_blends_by_the_seed_and_its_number(monkeypatch):
    apply = replace_network(monkeypatch)
    config = TrainConfig(data=DataConfig(mixup=True), seed=5)
    both = np.random.default_rng(0).integers(0, 256, (2, 2, 8, 8, 3), np.uint8)
    sharded = ShardedStep(config)
    initial = jax.device_get(sharded.state())  # No step consumes it there.
    blended = 0
    for step in range(8):
        images = both.astype(np.float32) / 255
        key = jax.random.fold_in(jax.random.key(5), step)
        rainy, clean = mixup(key, *map(jnp.asarray, images))
        blended += not np.array_equal(rainy, images[0])
        expected = np.mean(np.abs(apply(config.model, initial.params, rainy) - clean))
        state = sharded.copied(initial._replace(step=np.int32(step)))
        _, metrics = sharded.step(state, {"rainy": both[0], "clean": both[1]})
        assert math.isclose(metrics["loss"], expected, rel_tol=1e-5)
    assert 0 < blended < 8
