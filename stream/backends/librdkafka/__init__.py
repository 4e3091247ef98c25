"""The worker's hot ports on librdkafka (confluent-kafka); the only importer of that library.

What is asked once or rarely, and the topics of our own, stay with `stream/backends/kafka`, and so do the words of
every error.
"""

from stream.backends.librdkafka.inputs import LibrdkafkaInputs
from stream.backends.librdkafka.outputs import LibrdkafkaOutputs

__all__ = ["LibrdkafkaInputs", "LibrdkafkaOutputs"]
