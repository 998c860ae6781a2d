"""Latency and size of a network: dense, compact, sparse, and by what else makes it faster."""

from prunus.bench.kinds import KINDS, VariantKind
from prunus.bench.matrix_layers import MatrixLayers
from prunus.bench.report import BenchReport, BenchRow
from prunus.bench.timing import bench

__all__ = ["KINDS", "BenchReport", "BenchRow", "MatrixLayers", "VariantKind", "bench"]
