"""What page views add to purchases, as far as a public clickstream goes: who of those at the shop buys within minutes?

    python -m benchmarks.models_clicks 2019-Oct.csv

Takes REES46's "eCommerce behavior data from multi category store" (Open CDP), .csv or .parquet. Every `STEP` minutes
each user seen in the last `BACK` minutes is an example: does he buy within the next `AHEAD`? Logistic regressions that
see purchases alone, and clicks as well, each asked about users that it was not fitted to. Nothing here is about churn:
the first three hours of the log hold no return.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from online_models.arrays import share, splitmix64
from stream.evaluation.measures import auc, average_precision

STEP, BACK, AHEAD = 2, 20, 10
FIRST_MINUTES = 180
FOLDS = 5
PURCHASES = ("bought", "minutes since bought")
CLICKS = (
    *("views", "carts", "products", "views of the most viewed"),
    *("minutes since the last", "minutes here", "log price"),
)
BOOTSTRAPS = 500


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path, metavar="FILE", help="the log, .csv or .parquet; its first three hours")
    rows, bought, users = examples(read(parser.parse_args().events))
    print(
        f"{len(rows):,} examples of {len(np.unique(users)):,} users, {bought.sum():,} bought within {AHEAD} minutes\n"
    )
    print("| what is known | AUC | average precision |")
    print("|---|---|---|")
    scores = {}
    for name, columns in (("purchases", PURCHASES), ("clicks", CLICKS), ("both", PURCHASES + CLICKS)):
        scores[name] = asked(rows[list(columns)].to_numpy(), bought, users)
        print(f"| {name} | {auc(bought, scores[name]):.3f} | {average_precision(bought, scores[name]):.3f} |")
    low, high = gain(bought, users, scores["purchases"], scores["both"])
    print(f"\nClicks add {low:+.3f} to {high:+.3f} of AUC (95 %, bootstrap over users)")


def read(path: Path) -> pd.DataFrame:
    """The first three hours, times as minutes from the beginning."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, nrows=50_000)
    time = pd.to_datetime(frame["event_time"].astype(str).str.removesuffix(" UTC"))
    frame["minute"] = (time - time.min()).dt.total_seconds() / 60
    return frame[frame["minute"] < FIRST_MINUTES]


def examples(events: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows of features, whether each bought within `AHEAD` minutes, and whose they are."""
    found = []
    for now in np.arange(BACK, events["minute"].max() - AHEAD, STEP):
        before = events[events["minute"] < now]
        seen = before[before["minute"] >= now - BACK]
        later = events[(events["minute"] >= now) & (events["minute"] < now + AHEAD)]
        buyers = set(later.loc[later["event_type"] == "purchase", "user_id"])
        earlier = before[before["event_type"] == "purchase"].groupby("user_id")["minute"].max()
        for user, own in seen.groupby("user_id"):
            last = earlier.get(user)
            views = own.loc[own["event_type"] == "view", "product_id"].value_counts()
            found.append(
                (
                    *(last is not None, now - last if last is not None else FIRST_MINUTES),
                    *(views.sum(), (own["event_type"] == "cart").sum(), len(views), views.max() if len(views) else 0),
                    *(now - own["minute"].max(), now - own["minute"].min(), np.log1p(own["price"].mean())),
                    *(user, user in buyers),
                )
            )
    table = pd.DataFrame(found, columns=[*PURCHASES, *CLICKS, "user", "buys"])
    return table, table["buys"].to_numpy(bool), table["user"].to_numpy(np.uint64)


def asked(rows: np.ndarray, bought: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Each example's score by a model that has not seen its user."""
    fold = (share(splitmix64(users)) * FOLDS).astype(int)
    scores = np.zeros(len(rows))
    for held in range(FOLDS):
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(rows[fold != held].astype(float), bought[fold != held])
        scores[fold == held] = model.decision_function(rows[fold == held].astype(float))
    return scores


def gain(bought: np.ndarray, users: np.ndarray, one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the difference in AUC over users drawn with replacement."""
    random = np.random.default_rng(0)
    of_user = [np.flatnonzero(users == user) for user in np.unique(users)]
    differences = []
    for _ in range(BOOTSTRAPS):
        drawn = np.concatenate([of_user[i] for i in random.integers(0, len(of_user), len(of_user))])
        differences.append(auc(bought[drawn], other[drawn]) - auc(bought[drawn], one[drawn]))
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


if __name__ == "__main__":
    main()
