"""Complete programs: each has one recipe dataclass and one `run(recipe)`."""
