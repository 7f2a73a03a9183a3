"""Filters of a few taps: plain ones, and Winograd's with fewer products for neighboring results.

S. Winograd's minimal filters as in A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks" (CVPR 2016), in one direction. Taps and values are taken for the coefficients of
polynomials, whose product is evaluated at 0, at infinity and at pairs of opposite numbers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.polynomial import polynomial

_PAIRS = (1.0, 2.0, 0.5)
"""Points beside 0 and infinity, each with both signs; with these, little is lost by rounding."""


@dataclass(frozen=True)
class Plain:
    """Sums of products of values and taps, for neighboring results.

    All filters have `products`: the number of a value, of a factor and of the sum to which their
    product is added. With `points` values x, and taps, all arrays of one shape, the results are
    `results` of the sums of products of `values(x)` and `factors(taps)`.
    """

    outputs: int
    taps: int

    @property
    def points(self) -> int:
        """Values that the results depend on."""
        return self.outputs + self.taps - 1

    @property
    def sums(self) -> int:
        """Sums that the results are computed from."""
        return self.outputs

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """Value, factor and sum of each product, in the order of values."""
        sums, taps = range(self.outputs), range(self.taps)
        return [(n, n - s, s) for n in range(self.points) for s in sums if n - s in taps]

    def transposed(self) -> Plain:
        """The filter whose taps are so many as this one's results, and the other way around."""
        return type(self)(self.taps, self.outputs)

    def factors(self, taps: Sequence[Any]) -> list[Any]:
        """What taps are before they are multiplied."""
        return list(taps)

    def values(self, x: Sequence[Any]) -> list[Any]:
        """What values are before they are multiplied."""
        return list(x)

    def results(self, sums: Sequence[Any]) -> list[Any]:
        """The results."""
        return list(sums)


@dataclass(frozen=True)
class Winograd(Plain):
    """As many products as values.

    Raises:
        ValueError: if these are odd, fewer than 4 or more than 8, or there is one tap.
    """

    def __post_init__(self) -> None:
        most = 2 + 2 * len(_PAIRS)
        if self.points % 2 or not 4 <= self.points <= most or self.taps < 2:
            raise ValueError(
                f"found {self.taps} taps and {self.points} values; expected at least 2 taps, and "
                f"an even number of values from 4 to {most}"
            )

    @property
    def sums(self) -> int:
        """Sums that the results are computed from."""
        return self.points

    @property
    def products(self) -> list[tuple[int, int, int]]:
        """Value, factor and sum of each product."""
        return [(n, n, n) for n in range(self.points)]

    def factors(self, taps: Sequence[Any]) -> list[Any]:
        """The polynomial of the taps at each point, scaled for the interpolation."""
        factors = [_weighted([1 / self._roots()[0]], list(taps[:1]))]
        for point, others in self._pairs():
            scale = 2 * point**2 * polynomial.polyval(point**2, others)
            powers = [point**n / scale for n in range(self.taps)]
            factors += _both_signs(_weighted(powers[::2], taps[::2]), powers[1::2], taps[1::2])
        return [*factors, taps[-1]]

    def values(self, x: Sequence[Any]) -> list[Any]:
        """The transposed interpolation of the values."""
        even, odd = x[::2], x[1::2]
        values = [_weighted(self._roots(), even)]
        for point, others in self._pairs():
            values += _both_signs(_weighted(others, even[1:]), point * others, odd[:-1])
        return [*values, _weighted(self._roots(), odd)]

    def results(self, sums: Sequence[Any]) -> list[Any]:
        """The transposed evaluation of the products."""
        pairs = list(zip(sums[1:-1:2], sums[2:-1:2], strict=True))
        terms = [a + b for a, b in pairs], [a - b for a, b in pairs]
        results = []
        for power in range(self.outputs):
            result = _weighted([point**power for point, _ in self._pairs()], terms[power % 2])
            if power == 0:
                result = sums[0] + result
            if power == self.outputs - 1:
                result = result + sums[-1]
            results.append(result)
        return results

    def _roots(self, without: float = 0) -> Any:
        """Coefficients of the polynomial in x^2 that is zero at all pairs but one."""
        pairs = _PAIRS[: self.points // 2 - 1]
        return polynomial.polyfromroots([pair**2 for pair in pairs if pair != without])

    def _pairs(self) -> Iterator[tuple[float, Any]]:
        for point in _PAIRS[: self.points // 2 - 1]:
            yield point, self._roots(without=point)


def _both_signs(even: Any, weights: Any, odd: Sequence[Any]) -> list[Any]:
    """The values of a polynomial at a point and at its opposite."""
    total = _weighted(weights, odd)
    return [even + total, even - total]


def _weighted(weights: Any, terms: Sequence[Any]) -> Any:
    """A weighted sum, without products by 1."""
    pairs = zip(weights, terms, strict=True)
    products = (term if weight == 1 else float(weight) * term for weight, term in pairs)
    return functools.reduce(operator.add, products)
