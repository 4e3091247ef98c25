"""`driftline evaluate segments` on a small shop, and the figures it compares by."""

import builtins
import csv
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest
from sklearn.metrics import adjusted_rand_score

from stream.cli import main
from stream.errors import SettingsError
from stream.evaluation import clusterings
from stream.evaluation.segments import OURS, TOLD, Customers
from stream.processing.alerts import rfc3339
from stream.processing.customer import NO_SEGMENT
from stream.processing.names import SEGMENT_FEATURES

DAY_MS = 86_400_000
START_MS = 1_750_000_000_000
CUSTOMERS = 150


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four months of three kinds of customers: often and little, rarely and much, and in between."""
    random = Random(7)
    orders = []
    for number in range(CUSTOMERS):
        gap, basket = [(3.0, 10.0), (20.0, 200.0), (9.0, 50.0)][number % 3]
        day = random.uniform(0, gap)
        while day < 120:
            orders.append((START_MS + round(day * DAY_MS), f"c-{number}", basket * random.uniform(0.7, 1.4)))
            day += gap * random.uniform(0.6, 1.4)
    path = tmp_path_factory.mktemp("shop") / "orders.jsonl"
    with path.open("wb") as file:
        for number, (time_ms, customer, amount) in enumerate(sorted(orders)):
            properties = {"order_id": f"o-{number}", "revenue": round(amount, 2), "currency": "USD"}
            body = {"type": "track", "event": "Order Completed", "messageId": f"m-{number}", "userId": customer}
            file.write(orjson.dumps(body | {"timestamp": rfc3339(time_ms), "properties": properties}) + b"\n")
    return path


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_MODELS__FIRST_CUSTOMERS", "60")
    monkeypatch.setenv("DRIFTLINE_MODELS__PUBLISH_MIN_EVENTS", "300")


def evaluated(shop: Path, capsys: pytest.CaptureFixture[str], *more: str) -> Any:
    assert main(["evaluate", "segments", "--events", str(shop), "--segments", "3", "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("early")
def test_segments_of_a_plain_shop_are_those_of_a_batch_run(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = tmp_path / "scores.csv"
    found = evaluated(shop, capsys, "--scores", str(scores), "--model", "river.cluster.KMeans")
    results = {one["name"]: one for one in found["results"]}
    assert results[OURS]["inertia_ratio"] < 1.1
    assert results[OURS]["fewest_groups"] == 3
    assert set(results) > {OURS, TOLD, "River: cluster.KMeans", "scikit-learn: MiniBatchKMeans"}
    assert found["customers"] == CUSTOMERS
    assert {one["id"] for one in found["now"]} == {0, 1, 2}
    assert sum(one["customers"] for one in found["now"]) == CUSTOMERS
    with scores.open(newline="") as text:
        rows = list(csv.DictReader(text))
    assert set(rows[0]) == {"customer", "time", "segment", "held", *SEGMENT_FEATURES}
    last = [row for row in rows if row["time"] == found["checkpoints"][-1]]
    assert len({row["customer"] for row in last}) == len(last) == CUSTOMERS
    points = np.array([[float(row[name]) for name in SEGMENT_FEATURES] for row in last])
    again = clusterings.batch().run(points, 3, 0)
    agreed = clusterings.agreement(np.array([int(row["segment"]) for row in last]), again.labels)
    assert agreed > 0.8


@pytest.mark.usefixtures("early")
def test_without_json_there_are_tables_for_a_person(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "segments", "--events", str(shop), "--segments", "3"]) == 0
    out = capsys.readouterr().out
    assert "inertia ratio" in out
    assert "return to a segment left within a week" in " ".join(out.split())


@pytest.mark.usefixtures("early")
def test_without_scikit_learn_our_own_batch_run_stands_in_and_the_table_says_so(
    shop: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clusterings.importlib.import_module

    def missing(name: str) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(clusterings.importlib, "import_module", missing)
    found = evaluated(shop, capsys)
    assert "pip install '.[evaluate]' where Driftline's source is" in found["batch"]
    assert found["missing"] == [
        "scikit-learn: MiniBatchKMeans (to compare: pip install '.[evaluate]' where Driftline's source is)"
    ]
    assert found["batch_agreement"] > 0.8


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--events", "nowhere.csv"], "nowhere.csv cannot be read: no such file"),
        (["--model", "river.cluster.Nothing"], "--model river.cluster.Nothing: no such class"),
        (["--model", "river.anomaly.LocalOutlierFactor"], "is no River clusterer"),
        ([], "150 customers came to 3 purchase occasions"),
    ],
)
def test_what_cannot_be_evaluated_is_said_with_exit_code_2(
    shop: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["evaluate", "segments", "--events", str(shop), *more]) == 2
    assert said in capsys.readouterr().err


def test_the_input_is_not_written_over(shop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = shop.read_bytes()
    assert main(["evaluate", "segments", "--events", str(shop), "--scores", str(shop)]) == 2
    assert "is an input" in capsys.readouterr().err
    assert shop.read_bytes() == before


@pytest.mark.parametrize("seed", range(5))
def test_agreement_is_the_adjusted_rand_index_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    left = random.integers(0, 4, 300)
    right = np.where(random.random(300) < 0.3 * seed, random.integers(0, 6, 300), left + 2)
    assert clusterings.agreement(left, right) == pytest.approx(adjusted_rand_score(left, right), abs=1e-12)


def test_our_batch_run_is_as_close_as_scikit_learn_s() -> None:
    random = np.random.default_rng(1)
    points = random.normal(size=(2_000, 5)) + random.normal(size=(6, 5))[random.integers(0, 6, 2_000)] * 2
    theirs, ours = clusterings.batch().run(points, 6, 0), clusterings._own(points, 6, 0)
    assert ours.inertia < 1.002 * theirs.inertia
    assert ours.inertia == pytest.approx(clusterings.by_means(points, ours.labels).inertia, rel=1e-3)


def test_rank_cells_have_one_size_and_follow_the_signs() -> None:
    points = np.column_stack([np.arange(90.0), -np.arange(90.0)])
    cut = clusterings.by_rank(points, 3, (0, 1), (1.0, -1.0))
    assert cut.labels.tolist() == sorted(cut.labels.tolist())
    assert np.bincount(cut.labels).tolist() == [30, 30, 30]


def test_a_return_counts_within_a_week_only() -> None:
    customers = Customers()
    features = np.zeros((1, len(SEGMENT_FEATURES)))
    for day, segment in ((0, NO_SEGMENT), (1, 0), (3, 1), (9, 0), (20, 1), (40, 0)):
        customers.see(["a"], features, np.array([segment], np.int32), START_MS + day * DAY_MS)
    assert customers.returns == 1
    assert customers.weeks == pytest.approx(39 / 7)


def test_a_class_that_is_no_clusterer_is_refused() -> None:
    with pytest.raises(SettingsError, match="write it like"):
        clusterings.named("KMeans", 3, 1)
    assert builtins.callable(clusterings.named("river.cluster.KMeans", 3, 1).learn)
