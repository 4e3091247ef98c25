"""The job on Quix Streams: a stateful `apply`, state in its RocksDB and a changelog topic, its own defaults elsewhere.

Default: at least once. Strongest: exactly once, one transaction a checkpoint of five seconds. The transactional id is
another one at every start by default; `fixed_id` gives one that stays.
"""

from quixstreams import Application

from benchmarks.peers.job import Job, Meter, Place, die


def run(place: Place, job: Job, meter: Meter, exactly_once: bool, fixed_id: bool = False) -> None:
    app = Application(
        broker_address=place.bootstrap,
        consumer_group=place.name,
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once" if exactly_once else "at-least-once",
        producer_extra_config={"transactional.id": f"{place.name}-1"} if fixed_id else None,
        state_dir=place.directory / "state",
        loglevel="WARNING",
    )
    source = app.topic(place.source, value_deserializer="json")
    alerts = app.topic(place.alerts, value_serializer="json")

    def step(body, state):
        meter.count()
        if meter.events == place.kill_at:
            die()
        known, alert = job.step(state.get("customer"), body)
        state.set("customer", known)
        if meter.events == place.events:
            app.stop()
        return alert

    sdf = app.dataframe(source)
    sdf = sdf.apply(step, stateful=True)
    sdf = sdf.filter(lambda alert: alert is not None)
    sdf.to_topic(alerts)
    app.run()
