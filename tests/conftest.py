"""What every test needs: Ctrl-C as a terminal gives it, also where the suite runs as a background job.

A shell starts background jobs with SIGINT ignored, and every process below inherits that.
"""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
