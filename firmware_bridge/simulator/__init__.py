"""A simulated instrument behind the real one's bytes: the PZT controller's firmware and its stage, on a wire."""

from .controller import Simulator as Simulator
from .faults import FAULTS as FAULTS
from .faults import Fault as Fault
from .faults import Faults as Faults
from .serving import Server as Server
from .serving import serve_pty as serve_pty
from .serving import serve_tcp as serve_tcp
