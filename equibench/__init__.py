"""equibench: which transformations does a representation keep, which does it throw away, and how sure are we?"""

__version__ = "0.1.0"
