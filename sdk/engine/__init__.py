"""Engines: what runs a stage."""
