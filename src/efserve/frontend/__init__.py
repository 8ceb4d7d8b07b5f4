"""What listens: the v2 HTTP port and the metrics port."""
