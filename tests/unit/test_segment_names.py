import numpy as np
import pytest

from stream.processing.names import SEGMENT_FEATURES
from stream.processing.segment_names import PLAIN, in_units, names, profile, said


def centre(**features: float) -> np.ndarray:
    return np.array([features.get(name, 0.0) for name in SEGMENT_FEATURES])


def test_a_name_is_made_of_what_is_furthest_from_all_customers() -> None:
    found = names(np.array([centre(frequency=1.5, amount=-0.8), centre(recency=2.0), centre(weekend=PLAIN / 2)]))
    assert found == ["Frequent orders, small orders", "Long silent", "Average customers"]


def test_names_of_a_version_are_distinct_however_alike_its_segments() -> None:
    alike = np.array([centre(frequency=1.0, amount=1.0 + i / 100, evening=0.4) for i in range(5)])
    found = names(alike)
    assert len(set(found)) == 5
    assert found[:2] == ["Frequent orders, large orders", "Large orders, frequent orders"]


def test_a_name_is_kept_while_it_is_still_plainly_so() -> None:
    before = ["Frequent orders, small orders"]
    drifted = centre(frequency=0.5, amount=-0.4, evening=0.9, weekend=-0.7)
    assert names(drifted[None], before) == before
    assert names(centre(frequency=0.5, evening=0.9)[None], before) == ["Evening shoppers, frequent orders"]
    assert names(centre(frequency=0.5, amount=0.4, evening=0.9)[None], before) != before  # on the other side
    crowded = centre(frequency=0.5, amount=-0.4, evening=0.9, weekend=-0.7, recency=0.8)
    assert names(crowded[None], before) != before  # no more among the four strongest


def test_a_segment_without_a_former_name_does_not_take_another_s() -> None:
    profiles = np.array([centre(frequency=1.0, amount=1.0), centre(frequency=1.2, amount=0.9)])
    first, second = names(profiles, ["", "Frequent orders, large orders"])
    assert second == "Frequent orders, large orders" or first != second
    assert first != second


@pytest.mark.parametrize(
    ("feature", "value", "name", "known"),
    [
        ("frequency", np.log(3.0), "days_between_orders", 10.0),
        ("recency", np.log(42.0), "days_since_order", 12.0),
        ("amount", np.log1p(20.0), "order_value", 20.0),
        ("variety", 3.0, "categories", 8.0),
        ("browsing", np.log1p(4.0), "views_per_order", 4.0),
        ("evening", 0.4, "evening_share", 0.4),
    ],
)
def test_values_are_told_in_units_that_people_use(feature: str, value: float, name: str, known: float) -> None:
    found = in_units(feature, float(value))
    assert found == (name, pytest.approx(known))
    assert said(feature, float(value), "USD")


def test_a_profile_names_every_feature() -> None:
    found = profile(np.full(len(SEGMENT_FEATURES), 0.5).tolist())
    assert len(found) == len(SEGMENT_FEATURES)
    assert all(np.isfinite(value) for value in found.values())
