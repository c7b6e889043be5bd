"""Strategies against their peers."""
