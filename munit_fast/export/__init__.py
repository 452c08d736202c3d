"""Trained models as files for other runtimes: ONNX, OpenVINO's IR, torch.export's .pt2."""

from munit_fast.export.files import ExportedFile, ExportError, export_model
from munit_fast.export.formats import FORMATS
from munit_fast.export.onnx_model import OnnxModel

__all__ = ["FORMATS", "ExportError", "ExportedFile", "OnnxModel", "export_model"]
