"""Worlds, tools, tasks and verifiers."""
