"""One thin file per command: options -> one frozen config -> one call -> print."""
