"""The models, pure: no I/O, no clock, no logging. Each speaks River, and beside it `*_many` over arrays."""

from online_models.churn import ChurnRisk
from online_models.half_space_trees import HalfSpaceTrees
from online_models.kmeans import IncrementalKMeans
from online_models.reference_forest import ReferenceForest
from online_models.sequential_kmeans import KMeans

__all__ = ["ChurnRisk", "HalfSpaceTrees", "IncrementalKMeans", "KMeans", "ReferenceForest"]
