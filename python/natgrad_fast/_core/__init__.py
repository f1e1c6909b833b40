"""The compiled core: the module for the best instruction set of this processor takes this place."""

import sys

from .._isa import load

sys.modules[__name__] = load(__name__)
