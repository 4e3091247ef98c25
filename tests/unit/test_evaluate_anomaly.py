import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest
from sklearn import metrics

from stream.cli import main
from stream.evaluation.detectors import from_mean
from stream.evaluation.measures import auc, average_precision
from tests.builders import NOW, SMALL_MODELS, order

CONFIG = "[models]\n" + "".join(f"{name} = {value}\n" for name, value in SMALL_MODELS.items())


def table(n: int = 3200) -> tuple[np.ndarray, np.ndarray]:
    """Correlated numbers; one row in fifty breaks the correlation."""
    random = np.random.default_rng(5)
    X = random.normal(size=(n, 1)) * [1.0, 10.0, 100.0, 1.0] + random.normal(size=(n, 4)) * [0.2, 2.0, 20.0, 0.2]
    y = np.arange(n) % 50 == 7
    X[y, 1] -= 60.0
    return X, y


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    path = tmp_path / "set.npz"
    X, y = table()
    np.savez(path, X=X, y=y)
    return path


def evaluated(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(["evaluate", "anomaly", "--json", *map(str, arguments)]) == 0
    return json.loads(capfd.readouterr().out)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as text:
        return list(csv.DictReader(text))


def test_figures_of_ranking_are_scikit_learn_s() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        labels, scores = random.random(300) < 0.1, random.normal(size=300).round(random.integers(0, 4))
        labels[0] = True
        assert auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert average_precision(labels, scores) == pytest.approx(metrics.average_precision_score(labels, scores))


def test_a_table_is_judged_beside_river_the_batch_method_and_the_trivial_one(
    npz: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = evaluated(capfd, "--events", npz, "--model", "river.anomaly.OneClassSVM")
    assert {name: found[name] for name in ("rows", "features", "warm_up", "anomalies", "anomalies_after_warm_up")} == {
        "rows": 3200,
        "features": 4,
        "warm_up": 1000,
        "anomalies": 64,
        "anomalies_after_warm_up": 44,
    }
    results = {result["name"]: result for result in found["results"]}
    ours = results["Driftline: ReferenceForest"]
    assert ours["auc"] > 0.97
    assert {n: one["promised"] for n, one in ours["one_in"].items()} == {"100": 22.0, "1000": 2.2}
    as_river, river = results["our half-space trees, as River's"], results["River: MinMaxScaler | HalfSpaceTrees"]
    assert (as_river["auc"], as_river["average_precision"]) == (river["auc"], river["average_precision"])
    assert len(results) == 6
    assert all(result["us_per_row"] > 0 and 0 < result["auc"] <= 1 for result in results.values())


def test_every_row_gets_a_line_scored_before_it_is_learned(
    npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    X, y = table()
    parts = []
    for name, part in (("whole", slice(None)), ("half", slice(1600))):
        np.savez(tmp_path / f"{name}.npz", X=X[part], y=y[part])
        evaluated(capfd, "--events", tmp_path / f"{name}.npz", "--scores", tmp_path / f"{name}.csv")
        parts.append(lines(tmp_path / f"{name}.csv"))
    whole, half = parts
    assert [line["messageId"] for line in whole] == [str(i) for i in range(3200)]
    assert whole[:1600] == half
    scored = [i for i, line in enumerate(whole) if line["score"] != "0"]
    assert min(scored) == 64
    assert all(float(line["one_in"]) >= 1 for line in whole)
    assert auc(y, np.array([float(line["one_in"]) for line in whole])) > 0.9


def test_a_csv_of_numbers_gives_what_the_npz_gives(
    npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    X, y = table()
    path = tmp_path / "set.csv"
    with path.open("w") as text:
        text.write("a,messageId,b,c,d,Label\n")
        for i, (row, label) in enumerate(zip(X.tolist(), y.tolist(), strict=True)):
            text.write(f"{row[0]!r},m-{i},{row[1]!r},{row[2]!r},{row[3]!r},{int(label)}\n")
    scores = [tmp_path / f"{name}.csv" for name in ("npz", "csv")]
    found = [evaluated(capfd, "--events", each, "--scores", out) for each, out in zip((npz, path), scores, strict=True)]
    assert [result.get("auc") for result in found[0]["results"]] == [result["auc"] for result in found[1]["results"]]
    left, right = map(lines, scores)
    assert [line["score"] for line in left] == [line["score"] for line in right]
    assert right[17]["messageId"] == "m-17"


def test_labels_may_come_from_a_file_and_what_is_not_listed_is_normal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    X, y = table()
    np.savez(tmp_path / "set.npz", X=X)
    (tmp_path / "labels.csv").write_text("messageId,label\n" + "".join(f"{i},1\n" for i in np.flatnonzero(y)) + "0,0\n")
    bare = evaluated(capfd, "--events", tmp_path / "set.npz")
    assert all("auc" not in result for result in bare["results"])
    found = evaluated(capfd, "--events", tmp_path / "set.npz", "--labels", tmp_path / "labels.csv")
    assert found["anomalies"] == y.sum()
    assert found["results"][0]["auc"] > 0.97


def test_shuffling_keeps_ids_with_their_rows(npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, y = table()
    found = evaluated(capfd, "--events", npz, "--shuffle", 3, "--scores", tmp_path / "s.csv")
    said = lines(tmp_path / "s.csv")
    order = np.array([int(line["messageId"]) for line in said])
    assert sorted(order.tolist()) == list(range(3200)) != order.tolist()
    scores = np.array([float(line["score"]) for line in said])
    assert auc(y[order][1000:], scores[1000:]) == pytest.approx(found["results"][0]["auc"], abs=1e-6)


def test_a_shop_s_events_are_scored_as_the_stream_scores_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(1)
    bodies = [
        order(
            round(float(random.lognormal(3.0, 0.3)), 2),
            f"o-{i}",
            NOW + i * 600_000,
            userId=f"c-{i % 30}",
            messageId=f"m-{i}",
        )
        for i in range(1200)
    ]
    bodies[-1]["properties"]["revenue"] = 5000.0
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"\n".join(map(orjson.dumps, bodies)))
    (tmp_path / "labels.csv").write_text(f"messageId,label\nm-{len(bodies) - 1},1\n")
    (tmp_path / "small.toml").write_text(CONFIG)
    arguments = ("--config", str(tmp_path / "small.toml"), "evaluate", "anomaly", "--json", "--events", str(events))
    code = main([*arguments, "--labels", str(tmp_path / "labels.csv"), "--scores", str(tmp_path / "s.csv")])
    found = json.loads(capfd.readouterr().out)
    said = lines(tmp_path / "s.csv")
    assert code == 0
    assert [line["messageId"] for line in said] == [body["messageId"] for body in bodies]
    assert found["features"] == 11
    assert found["anomalies_after_warm_up"] == 1
    assert found["warm_up"] == next(i for i, line in enumerate(said) if line["score"] != "0")
    assert found["results"][0]["auc"] == 1.0
    assert float(said[-1]["one_in"]) > 300
    assert main([*arguments, "--shuffle", "1"]) == 2


def test_the_row_of_a_method_that_is_not_installed_says_how_to_install_it(
    npz: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    found = evaluated(capfd, "--events", npz)
    assert [result["missing"] for result in found["results"] if "missing" in result] == [
        "needs scikit-learn: pip install '.[evaluate]' where Driftline's source is"
    ]


def test_the_table_for_a_person_has_the_same_figures(npz: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = evaluated(capfd, "--events", npz)
    assert main(["evaluate", "anomaly", "--events", str(npz)]) == 0
    shown = capfd.readouterr().out
    assert "3,200 rows, 4 features, the first 1,000 not judged; 44 anomalies after them" in shown
    assert f"{found['results'][0]['auc']:.3f}" in shown
    assert '"One in 100": 22.0 promised' in shown


def test_distance_from_the_mean_is_in_standard_deviations_of_the_rows_before() -> None:
    rows = np.random.default_rng(0).normal([5.0, -100.0], [1.0, 30.0], (50, 2))
    expected = np.sqrt((((rows[40] - rows[:40].mean(axis=0)) / rows[:40].std(axis=0)) ** 2).sum())
    assert from_mean(rows, lambda _: None)[40] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.npz", None, "missing.npz cannot be read: no such file"),
        ("text.npz", "hello", "is no .npz of plain arrays"),
        ("short.csv", "a,b\n1,2\n", "has 1 usable rows; at least 100 are needed"),
        ("words.csv", "a,b\n1,2\n1,x\n", "words.csv, line 3, column b: found 'x', expected a number"),
        ("ragged.csv", "a,b\n1,2\n1\n", "line 3: found more or fewer cells than the header's 2"),
        ("label.csv", "y\n1\n", "its columns are y; none is left"),
        ("nothing.jsonl", "{}\n", "no event in it could be used"),
    ],
)
def test_bad_input_is_named_with_what_to_do(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, content: str | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    assert main(["evaluate", "anomaly", "--events", str(path)]) == 2
    assert said in capfd.readouterr().err.replace("\n", " ")


def test_wrong_arrays_labels_models_and_outputs_are_named(
    npz: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "no_x.npz", rows=np.zeros((5, 2)))
    np.savez(tmp_path / "odd.npz", X=np.zeros((200, 2)), y=np.zeros(7))
    (tmp_path / "others.csv").write_text("messageId,label\nm-1,1\n")
    (tmp_path / "maybe.csv").write_text("messageId,label\n1,maybe\n")
    (tmp_path / "columns.csv").write_text("id,label\n1,1\n")
    for arguments, said in (
        (("--events", tmp_path / "no_x.npz"), "holds rows; expected X"),
        (("--events", tmp_path / "odd.npz"), "found 7 labels in y for 200 rows in X"),
        (("--events", npz, "--labels", tmp_path / "others.csv"), "none of its messageIds (such as 'm-1')"),
        (("--events", npz, "--labels", tmp_path / "maybe.csv"), "line 2: found label 'maybe', expected 1 or 0"),
        (
            ("--events", npz, "--labels", tmp_path / "columns.csv"),
            "its columns are id, label; needed: messageId, label",
        ),
        (("--events", npz, "--scores", npz), "is an input; name another file"),
        (("--events", npz, "--scores", tmp_path / "no" / "s.csv"), "cannot be written"),
        (("--events", npz, "--model", "river.anomaly.Nothing"), "no such class"),
        (("--events", npz, "--model", "river.preprocessing.MinMaxScaler"), "is no detector"),
        (("--events", npz, "--model", "river.anomaly.ThresholdFilter"), "cannot be made without arguments"),
    ):
        assert main(["evaluate", "anomaly", *map(str, arguments)]) == 2
        assert said in capfd.readouterr().err.replace("\n", " ")


def test_other_commands_do_not_load_what_only_evaluate_needs() -> None:
    code = "import sys; from stream.cli import parser; parser(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "stream.evaluation.detectors" in loaded
    assert not {"pandas", "sklearn", "scipy.stats", "river.anomaly"} & set(loaded)
