"""Metrics: the judge. It sees recovered images, references and evaluators, never the attack."""

from midefense.metrics.accuracy import AttackAccuracy
from midefense.metrics.base import Judged, Measured, Metric, Released, World
from midefense.metrics.benchmark_fid import BenchmarkFid
from midefense.metrics.cost import Cost
from midefense.metrics.emd import EarthMoverGap
from midefense.metrics.feature_distance import FeatureDistance
from midefense.metrics.feature_space import FeatureSpace
from midefense.metrics.fid import FrechetDistance
from midefense.metrics.kid import KernelDistance
from midefense.metrics.knowledge import KnowledgeExtraction
from midefense.metrics.nearest_other import NearestOther
from midefense.metrics.net_of_fooling import NetOfFooling
from midefense.metrics.pairwise import FeatureCosine, PairedAccuracy, PerceptualDistance, PictureSimilarity
from midefense.metrics.panel import Panel
from midefense.metrics.prdc import PRDC
from midefense.metrics.released import ReleaseCost, ReleasedUtility
from midefense.metrics.restarts import RestartAccuracy
from midefense.metrics.robust import RobustAccuracy
from midefense.metrics.utility import TargetUtility

__all__ = [
    "PRDC",
    "AttackAccuracy",
    "BenchmarkFid",
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
    "NearestOther",
    "NetOfFooling",
    "PairedAccuracy",
    "Panel",
    "PerceptualDistance",
    "PictureSimilarity",
    "ReleaseCost",
    "Released",
    "ReleasedUtility",
    "RestartAccuracy",
    "RobustAccuracy",
    "TargetUtility",
    "World",
]
