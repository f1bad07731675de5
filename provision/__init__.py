"""Makes personal machine-learning platforms for physicists, on a cloud or on this computer, and looks after them."""

from mlaas4hep import __version__

__all__ = ["__version__"]
