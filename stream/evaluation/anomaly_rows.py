"""What `driftline evaluate anomaly` reads: a shop's events, or a table of numbers with or without labels."""

import csv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from stream.adapters import is_event_log, records
from stream.embedded import Embedded
from stream.errors import SettingsError
from stream.events import Record, fingerprint
from stream.processing.tick import TickResult
from stream.settings import Settings

TOPIC = "events"
LABELS = ("label", "y")
FEWEST_ROWS = 100
YES, NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no", "")


class Rows(NamedTuple):
    """Rows in order, with what Driftline said of each before it learned it, where a stream has said it already."""

    ids: list[str]
    values: NDArray[np.float64]
    labels: NDArray[np.bool_] | None
    scores: NDArray[np.float64] | None = None
    rates: NDArray[np.float64] | None = None


def read(path: Path, settings: Settings, progress: Callable[[int], None]) -> Rows:
    """The rows of a file; `progress` is called with the number of events fed, where they pass through the stream.

    Raises:
        SettingsError: the file cannot be read, or is neither events nor a table of numbers.
    """
    if not path.exists():
        raise SettingsError(f"{path} cannot be read: no such file")
    suffix = path.suffix.lower()
    if suffix == ".npz":
        rows = _npz(path)
    elif suffix == ".csv" and not is_event_log(path):
        rows = _csv(path)
    else:
        rows = _events(path, settings, progress)
    if len(rows.ids) < FEWEST_ROWS:
        raise SettingsError(
            f"{path} has {len(rows.ids)} usable rows; at least {FEWEST_ROWS} are needed to tell anything"
        )
    return rows


def labelled(rows: Rows, path: Path) -> Rows:
    """The rows with the labels of a CSV `messageId,label`; a row that is not listed is no anomaly.

    Raises:
        SettingsError: the file is not such a CSV, or lists none of the rows.
    """
    labels: dict[str, bool] = {}
    for line, cells in _lines(path, ("messageId", "label")):
        text = cells["label"].strip().lower()
        if text not in YES + NO:
            raise SettingsError(f"{path}, line {line}: found label {cells['label']!r}, expected 1 or 0")
        labels[cells["messageId"].strip()] = text in YES
    found = [labels.get(name) for name in rows.ids]
    if labels and not any(label is not None for label in found):
        raise SettingsError(
            f"{path}: none of its messageIds (such as {next(iter(labels))!r}) is a row's (such as {rows.ids[0]!r})"
        )
    return rows._replace(labels=np.array([bool(label) for label in found]))


def _npz(path: Path) -> Rows:
    try:
        with np.load(path) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise SettingsError(f"{path} is no .npz of plain arrays: {error}") from None
    if "X" not in held:
        raise SettingsError(f"{path} holds {', '.join(held) or 'nothing'}; expected X (rows × features) and y (labels)")
    X, y = held["X"], held.get("y")
    if X.ndim != 2 or X.dtype.kind not in "fiub":
        raise SettingsError(f"{path}: found X of shape {X.shape} and type {X.dtype}, expected numbers, rows × features")
    if y is not None and y.size != len(X):
        raise SettingsError(f"{path}: found {y.size} labels in y for {len(X)} rows in X, expected one per row")
    return Rows(list(map(str, range(len(X)))), X.astype(np.float64), None if y is None else y.ravel() > 0)


def _csv(path: Path) -> Rows:
    ids: list[str] = []
    values: list[list[float]] = []
    labels: list[bool] = []
    columns: list[str] = []
    label = ""
    for line, cells in _lines(path, ()):
        if not columns:
            label = next((name for name in cells if name.lower() in LABELS), "")
            columns = [name for name in cells if name not in (label, "messageId")]
            if not columns:
                raise SettingsError(
                    f"{path}: its columns are {', '.join(cells)}; none is left to look for anomalies in"
                )
        row = []
        for name in [*columns, *([label] if label else [])]:
            try:
                row.append(float(cells[name] or "nan"))
            except ValueError:
                raise SettingsError(
                    f"{path}, line {line}, column {name}: found {cells[name]!r}, expected a number "
                    "(a shop's events need a customer and a time column)"
                ) from None
        if label:
            labels.append(row.pop() > 0)
        ids.append(cells.get("messageId", str(len(ids))))
        values.append(row)
    return Rows(ids, np.array(values).reshape(len(ids), -1), np.array(labels) if label else None)


def _lines(path: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, Mapping[str, str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as text:
            lines = csv.DictReader(text)
            header = list(lines.fieldnames or [])
            if any(name not in header for name in needed):
                raise SettingsError(
                    f"{path}: its columns are {', '.join(header) or 'none'}; needed: {', '.join(needed)}"
                )
            for cells in lines:
                if None in cells or None in cells.values():
                    raise SettingsError(
                        f"{path}, line {lines.line_num}: found more or fewer cells than the header's {len(header)}"
                    )
                yield lines.line_num, cells
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingsError(f"{path} is no CSV in UTF-8: {error}") from None


def _events(path: Path, settings: Settings, progress: Callable[[int], None]) -> Rows:
    """The features of each accepted event, with score and rate as the stream would have had them."""
    names: dict[int, str] = {}
    uids: list[NDArray[np.uint64]] = []
    features: list[NDArray[np.float32]] = []
    scores: list[NDArray[np.float32]] = []
    rates: list[NDArray[np.float64]] = []

    def named() -> Iterator[Record]:
        for offset, record in enumerate(records(path, TOPIC)):
            name = _message_id(record.value or b"") or f"{TOPIC}-0-{offset}"
            names[fingerprint(name)] = name
            yield record

    def see(result: TickResult) -> None:
        entry, version = result.entry, embedded.worker.version
        uids.append(entry.uids)
        features.append(entry.features)
        scores.append(entry.scores)
        scored = version.number == entry.model_version and version.anomaly.ready
        rates.append(version.anomaly.rate_many(entry.scores) if scored else np.ones(len(entry.scores)))

    embedded = Embedded(settings, (TOPIC,), see)
    embedded.run({TOPIC: named()}, progress)
    if not sum(map(len, uids)):
        raise SettingsError(f"{path}: no event in it could be used; `driftline replay {path}` says why")
    return Rows(
        [names[uid] for uid in np.concatenate(uids).tolist()],
        np.concatenate(features).astype(np.float64),
        None,
        np.concatenate(scores).astype(np.float64),
        np.concatenate(rates),
    )


def _message_id(value: bytes) -> str | None:
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    found = body.get("messageId") if isinstance(body, dict) else None
    return str(found) if found not in (None, "") else None
