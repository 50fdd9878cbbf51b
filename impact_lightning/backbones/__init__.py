"""Vision transformers from timm, their named sites, and taps that read and change them."""

from .backbone import Backbone as Backbone
from .backbone import fingerprint as fingerprint
from .sites import Site as Site
from .sites import check_supported as check_supported
from .sites import expand_sites as expand_sites
from .sites import site_names as site_names
from .sites import site_width as site_width
from .taps import capture as capture
from .taps import patch as patch
