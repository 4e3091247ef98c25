"""What is granted is what is asked for, wherever it is said."""

from stream import privileges
from stream.backends.redis import _commands
from stream.diagnosis import OK, WRONG, cluster
from stream.diagnosis.facts import TopicFacts
from stream.settings import Settings


def test_doctor_asks_redis_for_just_what_a_worker_is_granted() -> None:
    asked = {
        "|".join(command[:2] if command[0] == "SCRIPT" else command[:1]).lower() for command in _commands("c", "m", "d")
    }
    assert asked == set(privileges.REDIS_WORKER)


def test_doctor_is_content_with_just_what_a_worker_is_granted_and_misses_each_part_of_it() -> None:
    settings = Settings()
    grants = [one for one in privileges.worker(settings) if one.kind == "topic"]
    allowed = {one.name: {*one.operations, "DESCRIBE"} for one in grants}
    for lacking in [None, *((one.name, operation) for one in grants for operation in one.operations)]:
        topics = [
            TopicFacts(name, (), {}, frozenset(some - ({lacking[1]} if lacking and lacking[0] == name else set())))
            for name, some in allowed.items()
        ]
        (finding,) = cluster.permissions(settings, topics, [], [])
        assert finding.level == (WRONG if lacking else OK)
        assert lacking is None or f"lacks {lacking[1]} on topic {lacking[0]}" in finding.found


def test_two_applications_share_no_right() -> None:
    mine, longer = (privileges.redis_keys(Settings(application={"name": name})) for name in ("shop", "shop2"))
    assert not longer.startswith(mine.partition("*")[0])
    for grant in privileges.worker(Settings()):
        assert not grant.prefixed or grant.name.endswith(":"), "no name of an application holds a colon"
