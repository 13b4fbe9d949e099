"""Pixels to random views: crops, flips, colours, erasing, and mixtures of a batch."""
