"""Metrics: the judge. It sees recovered images, references and evaluators, never the attack."""

from midefense.metrics.accuracy import AttackAccuracy
from midefense.metrics.base import Judged, Measured, Metric, World
from midefense.metrics.benchmark_fid import BenchmarkFid
from midefense.metrics.cost import Cost
from midefense.metrics.feature_distance import FeatureDistance
from midefense.metrics.feature_space import FeatureSpace
from midefense.metrics.fid import FrechetDistance
from midefense.metrics.kid import KernelDistance
from midefense.metrics.knowledge import KnowledgeExtraction
from midefense.metrics.prdc import PRDC
from midefense.metrics.restarts import RestartAccuracy
from midefense.metrics.utility import TargetUtility

__all__ = [
    "PRDC",
    "AttackAccuracy",
    "BenchmarkFid",
    "Cost",
    "FeatureDistance",
    "FeatureSpace",
    "FrechetDistance",
    "Judged",
    "KernelDistance",
    "KnowledgeExtraction",
    "Measured",
    "Metric",
    "RestartAccuracy",
    "TargetUtility",
    "World",
]
