"""The appliance: camera to engine to screen, scans and the status page. Never imports torch."""

__version__ = "0.1.0"
