"""efserve: convert, profile, plan, serve and benchmark deep-learning models with one command."""

__version__ = "0.1.0"
