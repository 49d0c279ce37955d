"""Calls of a diffusers pipeline whose loop runs outside of it."""
