"""`python -m tests.servers`: a Kafka and a Redis to play with, until Ctrl-C."""

import signal
import sys

from tests.servers import KafkaServer, RedisServer, ServerUnavailable


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: it ends the `with` in order
    try:
        with KafkaServer() as kafka, RedisServer(appendonly=True) as redis:
            print(f"{kafka.bootstrap_servers:28} {kafka.how}")
            print(f"{redis.url:28} {redis.how}")
            print("Ctrl-C stops both and deletes their data", flush=True)
            signal.pause()
    except KeyboardInterrupt:
        return 0
    except ServerUnavailable as error:
        print(f"{error.reason}\n{error.remedy}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
