"""Plans run on a heap of events instead of devices."""
