"""Exports of a sparse model: sparse files, compressed rows, ONNX and the 2:4 format."""

from prunus.export.csr_export import to_csr
from prunus.export.onnx_export import OnnxReport, to_onnx
from prunus.export.report import ExportReport
from prunus.export.semi_structured import SemiStructuredLayers, semi_structured_layers
from prunus.export.sparse_export import to_sparse
from prunus.export.sparse_format import TensorInfo

__all__ = [
    "ExportReport",
    "OnnxReport",
    "SemiStructuredLayers",
    "TensorInfo",
    "semi_structured_layers",
    "to_csr",
    "to_onnx",
    "to_sparse",
]
