"""Clocks: who drives the texts decides what time means. They know steps, and nothing of what the steps are about."""
