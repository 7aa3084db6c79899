"""Cost growth: time and memory along one axis, each point in a process of its own."""
