"""Logs on standard error: one JSON object a line, or text for a person."""

import logging
import sys
import time

import orjson

from stream.settings import Log

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`time` (UTC), `level, logger, message` and whatever the call passed as `extra`."""

    converter = staticmethod(time.gmtime)  # logs of several machines are read side by side

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class TextFormatter(logging.Formatter):
    """The same for a person."""

    def format(self, record: logging.LogRecord) -> str:
        extra = " ".join(f"{name}={value}" for name, value in _extra(record).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:7} {record.getMessage()}  {extra}".rstrip()
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(settings: Log) -> None:
    """Send our logs, and the client libraries' errors, to standard error.

    A broker that does not answer is one warning of ours at each attempt, and dozens of the client's in the same time:
    they are shown at DEBUG only.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stream").setLevel(settings.level)
    # Made all the same, as what the client only logs is heard by a filter of ours (backends/kafka/inputs.py).
    logging.getLogger("kafka").setLevel(logging.WARNING if settings.level == "DEBUG" else logging.ERROR)
    handler.addFilter(lambda record: settings.level == "DEBUG" or not record.name.startswith("kafka"))


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
