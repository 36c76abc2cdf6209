"""`python -m vae_core`: encode, decode and look at VAEs from the command line."""

from .main import main

__all__ = ["main"]
