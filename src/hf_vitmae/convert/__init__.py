"""Checkpoints of other systems to ours, and back."""
