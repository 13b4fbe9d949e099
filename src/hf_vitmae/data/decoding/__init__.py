"""Encoded bytes to pixels: every format, with its depth and channels, within limits."""
