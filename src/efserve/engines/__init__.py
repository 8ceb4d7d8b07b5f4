"""What runs a model file; imported only inside a worker process."""
