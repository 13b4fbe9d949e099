"""Our models against those of other libraries, as ratios within one run."""
