"""The HTTP API without a server: fields and headers → `Request`; `Transcript` or error → the bytes of a reply."""
