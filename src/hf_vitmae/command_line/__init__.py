"""What the command line says of itself: short help, completion, and how much it prints."""
