"""The version, in the one place that code, builds and summaries read it from."""

VERSION = "0.1.0"
