"""Metrics: the judge. It sees recovered images, references and evaluators, never the attack."""

from midefense.metrics.accuracy import AttackAccuracy
from midefense.metrics.base import Judged, Measured, Metric, Released, World
from midefense.metrics.cost import Cost
from midefense.metrics.emd import EarthMoverGap
from midefense.metrics.feature_distance import FeatureDistance
from midefense.metrics.feature_space import FeatureSpace
from midefense.metrics.fid import FrechetDistance
from midefense.metrics.kid import KernelDistance
from midefense.metrics.knowledge import KnowledgeExtraction
from midefense.metrics.pairwise import FeatureCosine, PairedAccuracy, PerceptualDistance, PictureSimilarity
from midefense.metrics.prdc import PRDC
from midefense.metrics.released import ReleaseCost, ReleasedUtility
from midefense.metrics.utility import TargetUtility

__all__ = [
    "PRDC",
    "AttackAccuracy",
    "Cost",
    "EarthMoverGap",
    "FeatureCosine",
    "FeatureDistance",
    "FeatureSpace",
    "FrechetDistance",
    "Judged",
    "KernelDistance",
    "KnowledgeExtraction",
    "Measured",
    "Metric",
    "PairedAccuracy",
    "PerceptualDistance",
    "PictureSimilarity",
    "ReleaseCost",
    "Released",
    "ReleasedUtility",
    "TargetUtility",
    "World",
]
