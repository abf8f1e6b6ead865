"""A simulated instrument behind the real one's bytes: the PZT controller's firmware and its stage, on a wire."""

from .controller import Simulator as Simulator
from .serving import Server as Server
from .serving import serve_pty as serve_pty
from .serving import serve_tcp as serve_tcp
