"""Which models run on which partitions: from profiles, rates and SLOs to a plan that holds."""
