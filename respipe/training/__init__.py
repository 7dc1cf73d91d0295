"""What goes beside the optimizer and the loss, and what the trainer of recipes is made of."""

from __future__ import annotations
