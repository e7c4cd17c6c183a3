"""The exception for errors that users can fix."""


class FastglowError(ValueError):
    """Bad input: one line that names the value and the remedy. The command prints it and exits with code 2."""
