"""What can go wrong in the science.

ModelsError
  OpticsError(ValueError)      parameters no instrument can have
  SpecimenError(ValueError)    a specimen that cannot be drawn or read
  RecipeError(ValueError)      a training configuration or data set name that is not one
  CheckpointError(ValueError)  a file that is no checkpoint of ours
  PairsError(ValueError)       a lab's images that cannot be registered, labelled, written or read as pairs
  DivergedError                training produced a loss that is not a number
"""


class ModelsError(Exception):
    """Something in optics, data, training or evaluation failed."""


class OpticsError(ModelsError, ValueError):
    """An optical parameter is outside what can be built or simulated."""


class SpecimenError(ModelsError, ValueError):
    """A specimen cannot be drawn or read."""


class RecipeError(ModelsError, ValueError):
    """A training configuration or the name of a data set is wrong."""


class CheckpointError(ModelsError, ValueError):
    """A checkpoint is missing, malformed or of another network."""


class PairsError(ModelsError, ValueError):
    """A lab's images cannot be registered, labelled, written or read as training pairs."""


class DivergedError(ModelsError):
    """The training loss is not a number any more."""
