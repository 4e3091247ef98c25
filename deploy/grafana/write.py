"""The dashboards, a line a query: `python -m deploy.grafana.write` writes them as Grafana reads them, a test compares.

A row of the screen is 24 wide; panels fill it from left to right in the order in which they stand here.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, STAT_HEIGHT, GRAPH_HEIGHT = 24, 4, 8


class Panel(NamedTuple):
    """One panel; `queries` maps a legend to an expression. A stat shows the last value, otherwise it is a graph.

    `steps` are the colours of a stat from each value on, the first from the least.
    """

    title: str
    unit: str
    description: str
    queries: Mapping[str, str]
    width: int = 8
    stat: bool = False
    steps: tuple[tuple[str, float | None], ...] = (("blue", None),)
    stacked: bool = False
    words: Mapping[str, str] | None = None


def stat(
    title: str,
    unit: str,
    description: str,
    queries: Mapping[str, str] | str,
    steps: str = "blue",
    width: int = 4,
    words: Mapping[str, str] | None = None,
) -> Panel:
    """`steps` as in "green 60:orange 600:red"."""
    first, *others = steps.replace(":", " ").split(" ")
    colours = [(first, None), *((colour, float(at)) for at, colour in zip(others[::2], others[1::2], strict=True))]
    queries = {"": queries} if isinstance(queries, str) else queries
    return Panel(title, unit, description, queries, width, True, tuple(colours), words=words)


RATE = "[$__rate_interval]"
BUSY = (
    f'1 - (sum by (instance) (rate(driftline_phase_seconds_total{{phase="poll"}}{RATE}))'
    f' - sum by (instance) (rate(driftline_phase_cpu_seconds_total{{phase="poll"}}{RATE})))'
    f" / sum by (instance) (rate(driftline_phase_seconds_total{RATE}))"
)

OPERATIONS: dict[str, list[Panel]] = {
    "Is it keeping up?": [
        stat(
            "Rules that fire",
            "short",
            "Rules of deploy/prometheus/rules.yml; each has its heading in docs/runbook.md. Listed under Alerting.",
            'count(ALERTS{alertname=~"Driftline.*", alertstate="firing"}) or vector(0)',
            "green 1:red",
        ),
        stat(
            "Workers that answer",
            "short",
            "Targets that Prometheus reaches; of how many.",
            {"up": 'sum(up{job="driftline"})', "of": 'count(up{job="driftline"})'},
        ),
        stat(
            "Tasks",
            "short",
            "A task is one partition number. Only ready ones are worked on; recovering ones are brought level first.",
            {"ready": 'sum(driftline_tasks{state="ready"})', "recovering": 'sum(driftline_tasks{state="recovering"})'},
        ),
        stat(
            "Records waiting",
            "short",
            "Records in the input topics that are not committed yet. Falls while it catches up.",
            "sum(driftline_input_lag_records)",
            "green 10000:orange 1000000:red",
        ),
        stat(
            "Furthest behind",
            "s",
            "Wall clock minus stream time of the slowest task. With no records waiting: nothing comes in.",
            "max(driftline_stream_time_lag_seconds)",
            "green 900:orange 86400:red",
        ),
        stat(
            "Events a second", "short", "Events accepted, over all workers.", f"sum(rate(driftline_events_total{RATE}))"
        ),
        Panel(
            "Records waiting, by topic",
            "short",
            "One topic alone: its events are later than the other's, and the topic that is ahead waits.",
            {"{{topic}}": "sum by (topic) (driftline_input_lag_records)"},
        ),
        Panel(
            "Stream time lag, by task",
            "s",
            "Wall clock minus stream time, as of each ready task's last tick. A gap is a recovery.",
            {"task {{task}}": "max by (task) (driftline_stream_time_lag_seconds)"},
        ),
        Panel(
            "How busy",
            "percentunit",
            "Share of its time in which a worker's loop does not wait for events. At 100 % add a worker.",
            {"{{instance}}": BUSY},
        ),
        Panel(
            "Time of a turn",
            "s",
            "From its records to the store. Above kafka.session_timeout_s a worker is thrown out.",
            {
                "99 %": f"histogram_quantile(0.99, sum by (le) (rate(driftline_tick_seconds_bucket{RATE})))",
                "median": f"histogram_quantile(0.5, sum by (le) (rate(driftline_tick_seconds_bucket{RATE})))",
                "mean": f"sum(rate(driftline_tick_seconds_sum{RATE})) / sum(rate(driftline_tick_seconds_count{RATE}))",
            },
        ),
        Panel(
            "Where the time goes",
            "percentunit",
            "Wall time by phase, all workers. Waiting for Redis is load and apply, for Kafka commit.",
            {"{{phase}}": f'sum by (phase) (rate(driftline_phase_seconds_total{{phase!="poll"}}{RATE}))'},
            stacked=True,
        ),
        Panel(
            "Ticks and wakes a second",
            "short",
            "Committed ticks; silent customers looked at because their time had come.",
            {"ticks": f"sum(rate(driftline_ticks_total{RATE}))", "wakes": f"sum(rate(driftline_wakes_total{RATE}))"},
        ),
    ],
    "Is it right?": [
        stat(
            "Unusable records",
            "percentunit",
            "Share of the records of the last 15 minutes that went to the dead letters.",
            "sum(rate(driftline_dead_letters_total[15m]))"
            " / (sum(rate(driftline_dead_letters_total[15m])) + sum(rate(driftline_events_total[15m])))",
            "green 0.001:orange 0.01:red",
        ),
        stat(
            "Misplaced in an hour",
            "short",
            "Records in a partition that their customer does not belong to: a producer with another partitioner.",
            'sum(increase(driftline_dead_letters_total{reason="misplaced"}[1h]))',
            "green 1:red",
        ),
        stat(
            "Tasks lost in an hour",
            "short",
            "Dropped from memory and recovered. A few after a restart are as it should be.",
            "sum(increase(driftline_tasks_lost_total[1h]))",
            "green 10:orange 100:red",
        ),
        stat(
            "Longest recovery now",
            "s",
            "How long the slowest task has not been ready.",
            "max(driftline_task_recovering_seconds)",
            "green 30:orange 120:red",
        ),
        stat(
            "Starts in an hour",
            "short",
            "Starts of workers beyond the first that was seen.",
            'sum(changes(process_start_time_seconds{job="driftline"}[1h]))',
            "green 1:orange 5:red",
        ),
        stat(
            "Kinds of worker",
            "short",
            "Different code or settings among the workers: 1, but for the minutes of a deployment.",
            "count(count by (code, config) (driftline_build_info))",
            "green 2:orange",
        ),
        Panel(
            "Dead letters a minute, by reason",
            "short",
            "What is wrong with them is in the header driftline-detail of the dead-letter topic.",
            {"{{reason}}": f"60 * sum by (reason) (rate(driftline_dead_letters_total{RATE}))"},
            stacked=True,
        ),
        Panel(
            "Tasks lost a minute, by reason",
            "short",
            "Who does not answer, or who else writes: the reasons are explained in docs/metrics.md.",
            {"{{reason}}": f"60 * sum by (reason) (rate(driftline_tasks_lost_total{RATE}))"},
            stacked=True,
        ),
        Panel(
            "Recovering",
            "s",
            "How long each task has not been ready.",
            {"task {{task}}": "max by (task) (driftline_task_recovering_seconds)"},
        ),
        Panel(
            "Recoveries an hour",
            "short",
            "Tasks brought level, and the journal records replayed into Redis for it.",
            {
                "recoveries": "sum(increase(driftline_recoveries_total[1h]))",
                "records replayed": "sum(increase(driftline_journal_records_replayed_total[1h]))",
            },
        ),
        Panel(
            "Duplicates, late and clamped events a minute",
            "short",
            "Duplicates are not counted; late ones are, with less weight; a clamped one came from the future.",
            {
                "{{reason}}": f"60 * sum by (reason) (rate(driftline_events_ignored_total{RATE}))",
                "{{reason}} ": f"60 * sum by (reason) (rate(driftline_events_adjusted_total{RATE}))",
            },
        ),
        Panel(
            "Memory",
            "bytes",
            "Resident, by worker. Rows kept are bounded by customers.cache_rows.",
            {"{{instance}}": 'process_resident_memory_bytes{job="driftline"}'},
        ),
    ],
    "What is it telling the CRM?": [
        stat(
            "Since the last alert",
            "s",
            "Of any kind, by a worker that still runs.",
            "time() - max(driftline_last_alert_timestamp_seconds)",
            "green 21600:orange",
        ),
        stat(
            "Alerts in an hour",
            "short",
            "Published, of all kinds.",
            "sum(increase(driftline_alerts_total[1h]))",
        ),
        stat(
            "Held back by cap or wave",
            "short",
            "In an hour: alerts.max_per_day reached, or implausibly many customers silent at once.",
            'sum(increase(driftline_alerts_held_total{reason=~"daily_cap|wave"}[1h])) or vector(0)',
            "green 1:orange",
        ),
        stat(
            "Models",
            "short",
            "A model that is still learning raises no alerts.",
            {"{{model}}": "max by (model) (driftline_model_ready)"},
            "orange 1:green",
            8,
            {"0": "learning", "1": "ready"},
        ),
        stat(
            "Age of the models",
            "s",
            "Since the version in use was published.",
            "time() - max(driftline_model_published_timestamp_seconds > 0)",
            "green 259200:orange",
        ),
        Panel(
            "Alerts an hour, by kind",
            "short",
            "Committed and visible to the CRM.",
            {"{{kind}}": "sum by (kind) (increase(driftline_alerts_total[1h]))"},
            12,
            stacked=True,
        ),
        Panel(
            "Held back an hour, by kind and reason",
            "short",
            "What would have been an alert; the reasons are explained in docs/metrics.md.",
            {"{{kind}}: {{reason}}": "sum by (kind, reason) (increase(driftline_alerts_held_total[1h]))"},
            12,
            stacked=True,
        ),
    ],
}

MODELS: dict[str, list[Panel]] = {
    "Models": [
        stat(
            "Version",
            "short",
            "What ticks are scored with: newest and oldest among the workers. They differ for a moment only.",
            {"newest": "max(driftline_model_version)", "oldest": "min(driftline_model_version)"},
            width=6,
        ),
        stat(
            "Age of that version",
            "s",
            "Since it was published. Versions come after a count of learned events, so a quiet shop has few.",
            "time() - max(driftline_model_published_timestamp_seconds > 0)",
            width=6,
        ),
        stat(
            "Trainers",
            "short",
            "One worker is the trainer.",
            "sum(driftline_trainer_active)",
            "red 1:green 2:orange",
            6,
        ),
        stat(
            "Ready",
            "short",
            "A model that is still learning raises no alerts.",
            {"{{model}}": "max by (model) (driftline_model_ready)"},
            "orange 1:green",
            6,
            {"0": "learning", "1": "ready"},
        ),
        Panel(
            "Learned a second",
            "short",
            "By the trainer, from committed journal records: events, customers, matured labels.",
            {"{{what}}": f"sum by (what) (rate(driftline_learned_total{RATE}))"},
        ),
        Panel(
            "Churn: losses",
            "short",
            "Scored before learned. The model is worth something while its log loss is below the base's.",
            {"{{figure}}": 'max by (figure) (driftline_model_figure{model="churn", figure=~".*log_loss|brier"})'},
        ),
        Panel(
            "Churn: skill and share",
            "percentunit",
            "Skill: share of the base's log loss that the model saves. Share: how many churned.",
            {"{{figure}}": 'max by (figure) (driftline_model_figure{model="churn", figure=~"skill|churned_share"})'},
        ),
        Panel(
            "Segments: inertia ratio",
            "short",
            "Distance of customers to their centre, scored before learned, over that of the fit: near 1 fits.",
            {"{{figure}}": 'max by (figure) (driftline_model_figure{model="segments", figure="inertia_ratio"})'},
        ),
        Panel(
            "Samples learned, by model",
            "short",
            "Events, customers and labels that went into the version in use.",
            {
                "{{model}}": 'max by (model) (driftline_model_figure{figure="learned"})',
                "labels": 'max(driftline_model_figure{model="churn", figure="labels"})',
            },
        ),
        Panel(
            "Versions an hour",
            "short",
            "Changes of version, by worker.",
            {"{{instance}}": "sum by (instance) (changes(driftline_model_version[1h]))"},
        ),
    ],
    "Customers": [
        stat("Customers", "short", "Known, over all tasks.", "sum(max by (task) (driftline_customers))", width=6),
        stat(
            "Events a customer a day",
            "short",
            "Over the last hour.",
            "24 * sum(increase(driftline_events_total[1h])) / sum(max by (task) (driftline_customers))",
            width=6,
        ),
        stat(
            "CPU an event",
            "s",
            "Of the workers' threads. A quiet shop spends most of it polling.",
            f"sum(rate(driftline_phase_cpu_seconds_total{RATE})) / sum(rate(driftline_events_total{RATE}))",
            width=6,
        ),
        stat(
            "Journal an event",
            "bytes",
            "Bytes before compression.",
            f"sum(rate(driftline_journal_bytes_total{RATE})) / sum(rate(driftline_events_total{RATE}))",
            width=6,
        ),
        Panel(
            "Segments",
            "percentunit",
            "Share of customers in each, as the version in use learned it.",
            {"{{name}}": "max by (segment, name) (driftline_segment_share)"},
            16,
            stacked=True,
        ),
        Panel(
            "Customers, by task",
            "short",
            "About equal, as keys are spread by their hash.",
            {"task {{task}}": "max by (task) (driftline_customers)"},
        ),
        Panel(
            "Customers whose row ended, a day",
            "short",
            "Forgotten at somebody's request, or silent for their whole retention.",
            {"{{reason}}": "sum by (reason) (increase(driftline_customers_ended_total[1d]))"},
        ),
        Panel(
            "Events a second, by kind",
            "short",
            "Orders missing while views go on: a feed is lost.",
            {"{{kind}}": f"sum by (kind) (rate(driftline_events_total{RATE}))"},
            stacked=True,
        ),
        Panel(
            "Silent customers looked at a second",
            "short",
            "Because their time had come: whoever is near a threshold is looked at more often.",
            {"wakes": f"sum(rate(driftline_wakes_total{RATE}))"},
        ),
        Panel(
            "CPU an event, by phase",
            "s",
            "Of the workers' threads.",
            {
                "{{phase}}": f"sum by (phase) (rate(driftline_phase_cpu_seconds_total{RATE}))"
                f" / on () group_left () sum(rate(driftline_events_total{RATE}))"
            },
            stacked=True,
        ),
    ],
}

DASHBOARDS: dict[str, dict[str, Any]] = {
    "driftline": {
        "title": "Driftline",
        "description": "Is it keeping up, is it right, and what is it telling the CRM?",
        "rows": OPERATIONS,
    },
    "driftline-models": {
        "title": "Driftline: models and customers",
        "description": "What the models have learned, and of whom.",
        "rows": MODELS,
    },
}


def dashboard(name: str) -> str:
    """The file of one dashboard."""
    made = DASHBOARDS[name]
    links = [
        {"type": "link", "title": other["title"], "url": f"/d/{uid}", "keepTime": True, "icon": "dashboard"}
        for uid, other in DASHBOARDS.items()
        if uid != name
    ]
    firing = {
        "name": "Rules that fire",
        "datasource": SOURCE,
        "enable": True,
        "expr": 'ALERTS{alertname=~"Driftline.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "iconColor": "red",
    }
    body = {
        "uid": name,
        "title": made["title"],
        "description": made["description"],
        "tags": ["driftline"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": []},
        "links": links,
        "annotations": {"list": [firing]},
        "panels": list(_placed(made["rows"])),
    }
    return json.dumps(body, indent=1) + "\n"


def _placed(rows: Mapping[str, Iterable[Panel]]) -> Iterable[dict[str, Any]]:
    number, y = 1, 0
    for title, panels in rows.items():
        at = {"x": 0, "y": y, "w": WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": at, "panels": []}
        number, x, y, height = number + 1, 0, y + 1, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            height = STAT_HEIGHT if panel.stat else GRAPH_HEIGHT
            yield _panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": height})
            number, x = number + 1, x + panel.width
        y += height


def _panel(number: int, panel: Panel, at: Mapping[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    options: dict[str, Any]
    if panel.stat:
        steps = [{"color": colour, "value": value} for colour, value in panel.steps]
        defaults |= {"thresholds": {"mode": "absolute", "steps": steps}}
        if panel.words:
            options = {value: {"text": text} for value, text in panel.words.items()}
            defaults |= {"mappings": [{"type": "value", "options": options}]}
        options = {
            "colorMode": "value",
            "graphMode": "none",
            "reduceOptions": {"calcs": ["lastNotNull"]},
            "textMode": "auto" if list(panel.queries) == [""] else "value_and_name",
        }
    else:
        custom: dict[str, Any] = {"fillOpacity": 20 if panel.stacked else 0, "showPoints": "never"}
        if panel.stacked:
            custom["stacking"] = {"mode": "normal"}
        defaults |= {"custom": custom} | ({} if panel.unit == "percentunit" else {"min": 0})  # skill may be negative
        options = {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    targets = [
        {"refId": chr(ord("A") + place), "datasource": SOURCE, "expr": query, "legendFormat": legend.strip()}
        for place, (legend, query) in enumerate(panel.queries.items())
    ]
    return {
        "id": number,
        "type": "stat" if panel.stat else "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": dict(at),
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": targets,
    }


def main() -> None:
    """Write every dashboard."""
    for name in DASHBOARDS:
        (HERE / f"{name}.json").write_text(dashboard(name), "utf-8")


if __name__ == "__main__":
    main()
