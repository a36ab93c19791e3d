"""Attribution: how much each node of a basis matters for a metric."""
