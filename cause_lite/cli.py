"""The command line `cause-lite`; its commands are in `cause_lite.commands`."""

from cause_lite.commands.app import app, main

__all__ = ["app", "main"]
