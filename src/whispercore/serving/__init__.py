"""Jobs and continuous batching: windows of all open requests share the engines. Knows nothing of HTTP."""
