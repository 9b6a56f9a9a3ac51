"""CCR Autopilot's core: decides which GPU node gets a request, without reading a clock or opening a socket.

Operator scripts may ``import ccr`` and take their measurements from :mod:`ccr.metrics`.
"""

from ccr.version import __version__

__all__ = ["__version__"]
