from heptad.testing.check import check_plugin as check_plugin
from heptad.testing.report import PluginReport as PluginReport

__all__: list[str]
