"""Where a repartition writes a record: wherever what is done to its customer must be known."""

from stream.cli.repartition import copied_to
from stream.events import FORGET_HEADER, Record
from stream.processing import clock
from stream.processing.placement import partition_of
from tests.builders import RULES, body, record

PARTITIONS = 8


def copied(one: Record) -> tuple[bytes | None, list[int]]:
    return copied_to(clock.read(one, RULES), PARTITIONS, "murmur2")


def order_to_forget(customer: str) -> Record:
    return Record("t", 0, 0, 0, customer.encode(), None, ((FORGET_HEADER, b"1"),))


def test_an_order_to_forget_goes_wherever_events_of_the_customer_go() -> None:
    event = record(body(userId=..., anonymousId="c3"))
    places = set()
    for key in (b"c3", b"anon:c3"):
        found, (place,) = copied(event._replace(key=key))
        assert (found, place) == (key, partition_of(key.decode(), PARTITIONS, "murmur2"))
        places.add(place)
    assert len(places) == 2, "an id that tells the two apart was to be chosen"
    assert copied(order_to_forget("anon:c3")) == (b"anon:c3", sorted(places))


def test_an_order_to_forget_a_known_customer_goes_to_their_one_partition() -> None:
    assert copied(order_to_forget("c-1")) == (b"c-1", [partition_of("c-1", PARTITIONS, "murmur2")])


def test_what_cannot_be_decoded_keeps_its_key_and_its_partition_number() -> None:
    assert copied(Record("t", 11, 0, 0, b"k", b"{")) == (b"k", [3])
    assert copied(Record("t", 11, 0, 0, None, None)) == (b"", [3])
