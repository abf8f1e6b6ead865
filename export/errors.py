"""What can go wrong between a checkpoint and a bundle.

ExportError
  ManifestError(ValueError)   the bundle is not what its manifest says, or the manifest is not one
  ParityError                 two forms of one network differ by more than allowed
"""


class ExportError(Exception):
    """A model could not be exported, read or judged."""


class ManifestError(ExportError, ValueError):
    """A manifest, or the bundle around it, is missing, malformed or does not match its files."""


class ParityError(ExportError):
    """The exported graph and the network it came from give different pictures."""
