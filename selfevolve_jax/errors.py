"""Mistakes that a user can mend, as one exception type that the CLI prints without a traceback."""


class UserError(Exception):
    """Bad input. The message names the thing, its value and the fix; the CLI exits with code 2."""

    exit_code = 2


class DiskError(UserError):
    """The disk refused a write (no space, no permission). What was there before is intact; code 1."""

    exit_code = 1
