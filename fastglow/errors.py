"""The one exception type for mistakes a user can mend."""


class FastglowError(ValueError):
    """Bad input: one line that names the offending value and the remedy.

    The command line prints it as it is and exits with code 2.
    """
