"""The server: puts frontends, routers and workers together and looks after their lives."""
