"""The error of whoever chose the settings; commands end with exit status 2 for it, as argparse does."""


class SettingsError(ValueError):
    """An impossible setting or pair of settings; the message names the value and the remedy."""
