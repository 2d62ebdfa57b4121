"""Audio VAEs: train a prior on recordings alone, then encode, resynthesise and score sound with it.

The public names stand in `__init__.pyi`. They are loaded when they are first used, so that importing the package costs
nothing.
"""

import os
import signal
import sys

if os.path.basename(sys.argv[0]) == "audiovae" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the console script, which Ctrl-C ends without a word till it listens

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
