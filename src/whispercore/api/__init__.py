"""The wire format, written once for every front end: fields and headers → `Request`; `Transcript` → reply."""
