"""The version of the distribution, and nothing else, so that packaging can read it without imports."""

__version__ = "0.1.0"
