"""The version, where packaging reads it without importing Keras."""

__version__ = "0.1.0"
