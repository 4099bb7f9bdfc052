"""Combinators: layers made of layers."""
