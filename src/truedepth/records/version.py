"""The version of truedepth, which is written into every file that it makes."""

VERSION = "0.1.0"
