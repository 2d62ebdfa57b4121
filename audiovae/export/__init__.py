"""A prior in files that run without Python: ONNX graphs, and a static page."""

from audiovae.export.onnx import Exported, export

__all__ = ["Exported", "export"]
