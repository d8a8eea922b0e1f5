"""The one command: argument parsing, console output and the base error.

Every other package may import :mod:`skerry.console` and :mod:`skerry.errors`; this package imports
none of them, it finds their sub-commands by name.
"""

__version__ = "0.1.0"
