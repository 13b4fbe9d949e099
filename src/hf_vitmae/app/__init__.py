"""A page in the browser to try a model on: what it draws (`viewer`) and how it looks (`page`)."""
