"""The HTTP API without a server: form fields and headers → `Request`; `Transcript` or error → the bytes of the reply."""
