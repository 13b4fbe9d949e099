"""Sharing on the Hub: what is pushed, how, and the card that describes it."""
