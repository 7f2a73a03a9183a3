"""Filters of a few taps: Winograd's give the sums of the plain ones."""

from __future__ import annotations

import numpy as np
import pytest

from drsformer_jax.ops.filters import Plain, Winograd


def results(filter, taps, x):
    """Of a filter, by its products."""
    values, factors = filter.values(list(x)), filter.factors(list(taps))
    sums = [0.0] * filter.sums
    for value, factor, total in filter.products:
        sums[total] = sums[total] + values[value] * factors[factor]
    return filter.results(sums)


@pytest.mark.parametrize("filter", [Plain(4, 3), Winograd(2, 3), Winograd(4, 5), Winograd(2, 7)])
@pytest.mark.parametrize("turned", [False, True])
def test_filters_give_the_sums_of_neighbors_times_taps(filter, turned):
    filter = filter.transposed() if turned else filter
    random = np.random.default_rng(0)
    taps, x = random.normal(size=(filter.taps, 5)), random.normal(size=(filter.points, 5))
    expected = [
        sum(x[n + tap] * taps[tap] for tap in range(filter.taps)) for n in range(filter.outputs)
    ]
    np.testing.assert_allclose(results(filter, taps, x), expected, rtol=0, atol=2e-14)


def test_winograds_have_a_product_for_each_value():
    counts = {size: len(Winograd(rows, size).products) for size, rows in {3: 2, 5: 4, 7: 2}.items()}
    assert counts == {3: 4, 5: 8, 7: 8}
    assert len(Plain(4, 5).products) == 20


@pytest.mark.parametrize("filter", [Winograd(4, 5), Winograd(2, 7), Winograd(5, 4)])
def test_their_rounding_errors_are_a_few_times_those_of_plain_sums(filter):
    random = np.random.default_rng(0)
    plain = Plain(filter.outputs, filter.taps)
    taps = random.normal(size=(filter.taps, 5000)).astype(np.float32)
    x = random.normal(size=(filter.points, 5000)).astype(np.float32)
    exact = results(plain, taps.astype(float), x.astype(float))
    errors = [np.std(np.subtract(results(each, taps, x), exact)) for each in (filter, plain)]
    assert 0 < errors[0] < 10 * errors[1]


@pytest.mark.parametrize(("outputs", "taps"), [(3, 3), (6, 5), (2, 1), (4, 1)])
def test_numbers_of_points_without_numbers_to_evaluate_at_are_rejected(outputs, taps):
    with pytest.raises(
        ValueError, match=f"found {taps} taps and {outputs + taps - 1} values; expected"
    ):
        Winograd(outputs, taps)
