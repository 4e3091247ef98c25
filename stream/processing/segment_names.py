"""What a segment is like, in words and units that a marketer uses."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.processing.features import SHORT_DAYS
from stream.processing.names import SEGMENT_FEATURES

WORDS = {
    "frequency": ("frequent orders", "rare orders"),
    "recency": ("long silent", "recently active"),
    "amount": ("large orders", "small orders"),
    "variety": ("wide range", "narrow range"),
    "evening": ("evening shoppers", "daytime shoppers"),
    "weekend": ("weekend shoppers", "weekday shoppers"),
    "browsing": ("browse before buying", "buy without browsing"),
}
"""What a high and a low value of each segment feature is called."""
PLAIN = 0.35
"""A feature this many standard deviations from the mean of all customers sets a segment apart."""


def said(feature: str, value: float, currency: str) -> str:
    """A segment feature's value in words.

    >>> said("evening", 0.42, "USD"), said("frequency", 1.0, "USD"), said("recency", 3.5, "USD")
    ('42% of events after 18 h', 'an order every 11 days', '3 days since the last order')
    """
    known = in_units(feature, value)[1]
    match feature:
        case "frequency":
            return f"an order every {known:,.0f} days" if known >= 10 else f"an order every {known:.1f} days"
        case "recency":
            return f"{known:,.0f} days since the last order"
        case "amount":
            return f"{known:,.2f} {currency} a typical order"
        case "variety":
            return f"about {known:,.0f} categories"
        case "evening":
            return f"{known:.0%} of events after 18 h"
        case "weekend":
            return f"{known:.0%} of events at weekends"
        case _:
            return f"{known:,.1f} views an order"


def in_units(feature: str, value: float) -> tuple[str, float]:
    """A segment feature under the name and in the unit that people use.

    >>> in_units("amount", 3.5)
    ('order_value', 32.11545195869231)
    """
    match feature:
        case "frequency":
            return "days_between_orders", 30.0 / math.exp(value)
        case "recency":
            return "days_since_order", max(math.exp(value) - SHORT_DAYS, 0.0)
        case "amount":
            return "order_value", math.expm1(value)
        case "variety":
            return "categories", 2.0**value
        case "evening":
            return "evening_share", value
        case "weekend":
            return "weekend_share", value
        case _:
            return "views_per_order", math.expm1(value)


def profile(centre: Sequence[float]) -> dict[str, float]:
    """A centre, given in the features' own units, as people read it: three significant digits."""
    pairs = (in_units(name, value) for name, value in zip(SEGMENT_FEATURES, centre, strict=True))
    return {name: float(f"{value:.3g}") for name, value in pairs}


def names(standard: NDArray[np.float64], before: Sequence[str] = ()) -> list[str]:
    """One name per segment from its centre in standard units, shape (k, 7): the one or two features furthest out.

    A segment keeps the name it had before while what it says is still plainly so, among the segment's four strongest
    features. Two segments that would share a name are told apart by their third feature, and so on.

    >>> centres = np.zeros((3, 7)); centres[0, [0, 2]], centres[1, [0, 4]] = (2, 1), (-2, 1)
    >>> names(centres)
    ['Frequent orders, large orders', 'Rare orders, evening shoppers', 'Average customers']
    """
    chosen: list[str] = []
    for index, centre in enumerate(standard):
        order = np.argsort(-np.abs(centre), kind="stable")
        words = [WORDS[SEGMENT_FEATURES[i]][0 if centre[i] >= 0 else 1] for i in order]
        plain = int((np.abs(centre) >= PLAIN).sum())
        kept = before[index] if index < len(before) else ""
        if kept and kept not in chosen and all(part in words[: min(plain, 4)] for part in kept.lower().split(", ")):
            chosen.append(kept)
            continue
        length = min(plain, 2)
        while (name := _name(words[:length])) in chosen and length < len(words):
            length += 1
        chosen.append(name if name not in chosen else f"{name} ({index + 1})")
    return chosen


def _name(words: Sequence[str]) -> str:
    return ", ".join(words).capitalize() if words else "Average customers"
