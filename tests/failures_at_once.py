"""A plugin of pytest: a failure is printed when it happens, so that a run that is cut off has shown it.

pytest -p failures_at_once
"""


class Printer:
    """Of the process that prints, where there are several."""

    def __init__(self, config):
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report):
        terminal = self._plugins.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_line(f"\n{report.nodeid}, {report.when}:\n{report.longreprtext}")
            terminal.flush()


def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Printer(config))
