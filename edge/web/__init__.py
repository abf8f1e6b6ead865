"""The status page: :func:`create_app` builds it from the status board, :func:`serve` puts it on a port."""

from edge.web.app import JobRequest, create_app
from edge.web.server import PageServer, serve

__all__ = ["JobRequest", "PageServer", "create_app", "serve"]
