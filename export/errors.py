"""What can go wrong between a checkpoint and a bundle.

ExportError
  ManifestError(ValueError)   the bundle is not what its manifest says, or the manifest is not one
  ParityError                 two forms of one network differ by more than allowed
  GraphError                  the ONNX graph is none that can be rewritten, or none that TensorRT would take
  CalibrationError            there are no pictures to calibrate with, or they are of another kind
  PrecisionError              what would run a precision cannot run it rightly
  PlanError                   a TensorRT plan cannot be built, or must not be used on this device
    CancelledBuildError       somebody asked the build to stop
"""


class ExportError(Exception):
    """A model could not be exported, read or judged."""


class ManifestError(ExportError, ValueError):
    """A manifest, or the bundle around it, is missing, malformed or does not match its files."""


class ParityError(ExportError):
    """The exported graph and the network it came from give different pictures."""


class GraphError(ExportError):
    """An ONNX graph is malformed, has operators that cannot be exported, or fails TensorRT's rules."""


class CalibrationError(ExportError):
    """The pictures that INT8 scales are measured on are missing, too few, or not what the network sees."""


class PrecisionError(ExportError):
    """A run time would compute a precision wrongly."""


class PlanError(ExportError):
    """A TensorRT plan cannot be built, or must not be used on this device."""


class CancelledBuildError(PlanError):
    """The build was asked to stop; nothing was written."""
