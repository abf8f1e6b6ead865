"""What can go wrong in the appliance, as one tree.

::

    EdgeError
      ConfigError(ValueError)      the configuration or an argument is wrong: exit code 2, nothing was started
      CameraError                  the camera cannot deliver
        CameraTimeoutError         no frame within the time allowed
        OverrunError               frames came faster than they were taken and the policy is lossless
      EngineError                  the model cannot be loaded or run
      BusyError                    the instrument already runs a job

A message says what happened with value and unit, what was expected, and what to do.
"""

from __future__ import annotations


class EdgeError(Exception):
    """Anything the appliance reports to its user."""


class ConfigError(EdgeError, ValueError):
    """The configuration or an argument is wrong; nothing was started."""


class CameraError(EdgeError):
    """The camera cannot deliver frames."""


class CameraTimeoutError(CameraError, TimeoutError):
    """No frame came within the time allowed."""


class OverrunError(CameraError):
    """A frame was lost although the policy is lossless."""


class EngineError(EdgeError):
    """The model cannot be loaded or run."""


class BusyError(EdgeError):
    """The instrument is not in the state for it: a job runs already, or none does."""
