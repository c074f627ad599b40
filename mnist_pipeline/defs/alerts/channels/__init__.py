"""The channels: each module here tells alerts somewhere, and its function `from_environment` sets it up.

Another channel is another module, and its variables in `Environment`.
"""

from importlib import import_module
from pkgutil import iter_modules

from mnist_pipeline.defs.alerts.channel import ChannelSetup
from mnist_pipeline.environment import Environment


def channels_from_environment(environment: Environment) -> list[ChannelSetup]:
    """Return all channels that there are, those with a missing variable too: their sensors say which."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return [setup for module in modules if (setup := module.from_environment(environment))]
