"""What is raised for a configuration that cannot be used."""


class ConfigError(ValueError):
    """The configuration cannot be used.

    The message has one line for each problem: the file, the key, the value found and what would work.
    """
