"""Images in shards, read from front to back in an order that no number of workers changes."""
