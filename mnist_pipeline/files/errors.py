"""The one error of files whose content cannot be used."""


class DataError(ValueError):
    """The data is not what it must be; the message says what was expected."""
