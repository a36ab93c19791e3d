"""Feature preference of attention heads and MLPs: which directions a component writes, given what it reads."""
