"""Messages and shared memory between the gateway and one worker."""
