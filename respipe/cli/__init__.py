"""The ``respipe`` command. Commands import what they need when they run, so that ``respipe --help`` is quick."""

from __future__ import annotations

from respipe.cli.app import app, main

__all__ = ["app", "main"]
