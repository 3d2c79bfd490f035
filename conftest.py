"""Loads the harness's pytest plugin for `pytest testcases` and `nvh test` alike."""

pytest_plugins = ["harness.pytest_plugin"]
