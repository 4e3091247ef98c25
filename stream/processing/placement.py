"""Which partition a key belongs to, as the producers' clients compute it."""

from zlib import crc32


def murmur2(key: bytes) -> int:
    """The 32-bit hash of Kafka's default partitioner (Java and kafka-python), unsigned.

    >>> murmur2(b"21") - 2**32  # as in Kafka's own UtilsTest
    -973932308
    """
    length = len(key)
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = (0x9747B28C ^ length) & mask
    for i in range(0, length - length % 4, 4):
        k = int.from_bytes(key[i : i + 4], "little") * m & mask
        k = (k ^ (k >> 24)) * m & mask
        h = (h * m & mask) ^ k
    if length % 4:
        h = (h ^ int.from_bytes(key[length - length % 4 :], "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def partition_of(key: str, partitions: int, partitioner: str) -> int:
    """The partition of a key: `murmur2` (Java, kafka-python) or `crc32` (librdkafka's consistent)."""
    data = key.encode()
    return (crc32(data) if partitioner == "crc32" else murmur2(data) & 0x7FFFFFFF) % partitions


def key_of(customer: str) -> str:
    """What a producer keys a customer's events by: the userId, or the anonymousId as it stands.

    >>> key_of("c-1"), key_of("anon:7f3a")
    ('c-1', '7f3a')
    """
    return customer.removeprefix("anon:") or customer


def is_placed(customer: str, partition: int, partitions: int, partitioner: str) -> bool:
    """Whether a customer's events belong to a partition.

    An anonymous customer may be keyed by `anonymousId` as it stands, or with our prefix.
    """
    if partitions == 1 or partition_of(customer, partitions, partitioner) == partition:
        return True
    bare = customer.removeprefix("anon:")
    return bare != customer and partition_of(bare, partitions, partitioner) == partition
