"""The one Triton Python model of a release: its config's ``stages`` parameter says what it runs."""

from tiercel_serving.runtime.triton import TritonPythonModel

__all__ = ["TritonPythonModel"]
