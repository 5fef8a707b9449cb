"""The version and the address, where packaging and the notebooks' script read them without importing Keras."""

__version__ = "0.1.0"
# What pip installs where a notebook finds no tlkeras, as on Colab: a name in a registry, or git+https://… of a
# repository. After a change run `python notebooks/set_address.py`, which writes it into the set-up cells.
ADDRESS = "tlkeras"
