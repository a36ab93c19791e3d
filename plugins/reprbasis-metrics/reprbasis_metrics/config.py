"""Options of the metrics (none of them has any)."""

from reprbasis import ComponentConfig


class MetricConfig(ComponentConfig):
    """No options."""
