"""Delivering a sparse network: files that are smaller, or for other runtimes."""

from prunus.export.csr_file import to_csr
from prunus.export.exported import Exported
from prunus.export.onnx_file import OnnxFile, to_onnx
from prunus.export.sparse_copy import to_sparse

__all__ = ["Exported", "OnnxFile", "to_csr", "to_onnx", "to_sparse"]
