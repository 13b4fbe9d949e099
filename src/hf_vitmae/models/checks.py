"""What configurations ask of their values."""


def is_positive_integer(value: object) -> bool:
    """Whether it is one; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: object) -> bool:
    """Whether it is an integer or a floating-point number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def require(holds: bool, field: str, value: object, allowed: str) -> None:
    """Raise `ValueError` that names field, value and what is allowed, unless it holds."""
    if not holds:
        raise ValueError(f"`{field}` must be {allowed}, got {value!r}.")
