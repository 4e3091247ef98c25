"""Kafka behind the worker's ports, on kafka-python; the only importer of that library."""

from stream.backends.kafka.admin import TopicCheck, check_topics, create_topics
from stream.backends.kafka.inputs import KafkaInputs
from stream.backends.kafka.outputs import KafkaOutputs, transactional_id
from stream.backends.kafka.questions import KafkaQuestions
from stream.backends.kafka.topic import KafkaTopic

__all__ = [
    "KafkaInputs",
    "KafkaOutputs",
    "KafkaQuestions",
    "KafkaTopic",
    "TopicCheck",
    "check_topics",
    "create_topics",
    "transactional_id",
]
