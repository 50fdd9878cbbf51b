"""Did sparsity make this vision transformer easier to understand?"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("impact_lightning")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
