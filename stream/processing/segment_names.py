"""Names a marketer can read, made from the two features that set a segment apart most."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stream.processing.names import SEGMENT_FEATURES

WORDS = {
    "frequency": ("frequent orders", "rare orders"),
    "trend": ("ordering more lately", "ordering less lately"),
    "amount": ("large orders", "small orders"),
    "items": ("many pieces an order", "few pieces an order"),
    "variety": ("wide range", "narrow range"),
    "evening": ("evening shoppers", "daytime shoppers"),
    "weekend": ("weekend shoppers", "weekday shoppers"),
    "browsing": ("browse before buying", "buy without browsing"),
}
"""What a high and a low value of each segment feature is called."""


def said(feature: str, value: float, currency: str) -> str:
    """A segment feature's value in words.

    >>> said("evening", 0.42, "USD"), said("frequency", 1.0, "USD")
    ('42% of events after 18 h', '2.7 orders in 30 days')
    """
    match feature:
        case "frequency":
            return f"{math.exp(value):.1f} orders in 30 days"
        case "trend":
            return f"ordering at {math.exp(value):.1f} times the earlier pace"
        case "amount":
            return f"{math.expm1(value):,.2f} {currency} a typical order"
        case "items":
            return f"{math.expm1(value):,.1f} pieces an order"
        case "variety":
            return f"about {2**value:,.0f} categories"
        case "evening":
            return f"{value:.0%} of events after 18 h"
        case "weekend":
            return f"{value:.0%} of events at weekends"
        case _:
            return f"{math.expm1(value):,.1f} views an order"


def names(profile: NDArray[np.float64], before: Sequence[str] = ()) -> list[str]:
    """One name per segment from its centre in standard units, shape (k, 8).

    A segment keeps the name it had before while the two features in it are still among its four strongest, on the
    same side. Two segments that would share a name are told apart by their third feature, and so on.

    >>> profile = np.zeros((2, 8)); profile[0, 0], profile[0, 2], profile[1, 0], profile[1, 5] = 2, 1, -2, 1
    >>> names(profile)
    ['Frequent orders, large orders', 'Rare orders, evening shoppers']
    """
    chosen: list[str] = []
    for index, centre in enumerate(profile):
        order = np.argsort(-np.abs(centre), kind="stable")
        words = [WORDS[SEGMENT_FEATURES[i]][0 if centre[i] >= 0 else 1] for i in order]
        kept = before[index] if index < len(before) else ""
        if kept and kept not in chosen and all(part in words[:4] for part in kept.lower().split(", ")):
            chosen.append(kept)
            continue
        length = 2
        while (name := ", ".join(words[:length]).capitalize()) in chosen and length < len(words):
            length += 1
        chosen.append(name if name not in chosen else f"{name} ({index + 1})")
    return chosen
