def demo() -> None:
    """Shows."""
