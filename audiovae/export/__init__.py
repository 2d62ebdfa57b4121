"""A prior in files that run without Python: ONNX graphs, and a static page."""

from audiovae.export.onnx import Exported, export
from audiovae.export.web import export_page

__all__ = ["Exported", "export", "export_page"]
